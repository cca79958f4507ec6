"""Names of the Celery queues, and of the task that sends."""

DELIVER = "deliver"
"""Wake-ups of subscriptions whose last attempt succeeded."""

RECOVER = "recover"
"""Wake-ups of subscriptions that are failing, with worker threads of their own."""

MAINTENANCE = "maintenance"
"""The sweep and the housekeeping, which must not wait behind either."""

TASK = "deliveries.tasks.deliver"
