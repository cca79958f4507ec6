"""Celery's own settings, with the reason for each."""

from django.conf import settings

from deliveries.waking.queues import DELIVER, MAINTENANCE
from deliveries.waking.redis_address import RedisAddress
from subscriptions.conf import conf

_redis = RedisAddress.parse(settings.REDIS_URL)

# `CELERY_BROKER_URL` of the Django settings, or the Redis that holds the wake-up flags.
broker_url = getattr(settings, "CELERY_BROKER_URL", "") or _redis.broker_url
# The first connection of a worker or beat may come before the broker is up; wait for it.
broker_connection_retry_on_startup = True
# And a worker never gives up on one that went away.
broker_connection_max_retries = None
# A publisher never waits for a broker that is gone: the rows are committed, the sweep finds them.
broker_connection_timeout = 0.5
broker_transport_options = {
    **(_redis.transport_options if broker_url == _redis.broker_url else {}),
    "socket_connect_timeout": 0.5,
    "socket_timeout": 0.5,
    "socket_keepalive": True,
    "max_retries": 0,
    "retry_on_timeout": False,
    # Redis only: no record in Redis of messages that a worker has taken and not yet begun. That
    # is four commands a message for what the sweep does anyway, should the worker die.
    "ack_emulation": False,
}
task_publish_retry = False

# The row is the work: nobody waits for a result, and a lost message costs one sweep.
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_acks_late = False
task_serializer = "json"
accept_content = ["json"]

task_default_queue = MAINTENANCE
task_create_missing_queues = True
task_routes = {"deliveries.tasks.deliver": {"queue": DELIVER}}
# One message ahead for each thread: what one worker holds back, another cannot take.
worker_prefetch_multiplier = 1
worker_hijack_root_logger = False
worker_send_task_events = False
timezone = "UTC"
enable_utc = True

beat_scheduler = "deliveries.beat:Scheduler"
beat_max_loop_interval = 1
beat_schedule = {
    "webhooks: sweep": {
        "task": "deliveries.tasks.sweep",
        "schedule": conf().sweep_interval,
        # No `expires`: it is a time of day, and a worker whose clock is ahead would discard all.
        "options": {"queue": MAINTENANCE},
    },
    "webhooks: housekeeping": {
        "task": "deliveries.tasks.housekeeping",
        "schedule": 600.0,
        "options": {"queue": MAINTENANCE},
    },
}
