"""Names of the Celery queues, and of tasks."""

DELIVER = "deliver"
"""Wake-ups of subscriptions whose last attempt succeeded."""

RECOVER = "recover"
"""Wake-ups of subscriptions that are failing, with worker threads of their own."""

MAINTENANCE = "maintenance"
"""The sweep and the housekeeping, which must not wait behind either."""

TASK = "deliveries.tasks.deliver"
SWEEP = "deliveries.tasks.sweep"
