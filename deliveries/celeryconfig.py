"""Celery's own settings, with the reason for each.

A project that has a Celery application already takes `task_routes` and `beat_schedule` into its
Django settings, which cannot be asked for anything while they are being imported. So what needs
them (`broker_url`, `broker_transport_options`) is computed when it is asked for.
"""

import os
import sys
from typing import Any

from django.conf import settings

from deliveries.waking.queues import DELIVER, MAINTENANCE, SWEEP, TASK
from deliveries.waking.redis_address import RedisAddress
from subscriptions.conf import WebhookSettings, conf

# The first connection of a worker or beat may come before the broker is up; wait for it.
broker_connection_retry_on_startup = True
# And a worker never gives up on one that went away.
broker_connection_max_retries = None
# A publisher never waits for a broker that is gone: the rows are committed, the sweep finds them.
broker_connection_timeout = 0.5
_broker_transport_options = {
    "socket_connect_timeout": 0.5,
    "socket_timeout": 0.5,
    "socket_keepalive": True,
    "max_retries": 0,
    "retry_on_timeout": False,
    # RabbitMQ only: one that blocks its publishers (a memory alarm) reads nothing any more.
    "write_timeout": 0.5,
    # Redis only: no record in Redis of messages that a worker has taken and not yet begun. That
    # is four commands a message for what the sweep does anyway, should the worker die.
    "ack_emulation": False,
}
task_publish_retry = False

# The row is the work: no caller waits for a result, and a lost message costs one sweep.
task_ignore_result = True
task_store_errors_even_if_ignored = False
task_acks_late = False
task_serializer = "json"
accept_content = ["json"]

task_default_queue = MAINTENANCE
task_create_missing_queues = True
task_routes = {TASK: {"queue": DELIVER}}
# One message ahead for each thread: what one worker holds back, another cannot take.
worker_prefetch_multiplier = 1
worker_hijack_root_logger = False
worker_send_task_events = False
timezone = "UTC"
enable_utc = True


def _sweep_interval() -> int:
    """By the Django settings, or by the environment where it is they that import this module."""
    module = os.environ.get("DJANGO_SETTINGS_MODULE")
    if not settings.configured and module in sys.modules:
        return WebhookSettings.from_env().sweep_interval
    return conf().sweep_interval


beat_scheduler = "deliveries.beat:Scheduler"
beat_max_loop_interval = 1
beat_schedule = {
    "webhooks: sweep": {
        "task": SWEEP,
        "schedule": _sweep_interval(),
        # No `expires`: it is a time of day, and a worker whose clock is ahead would discard all.
        "options": {"queue": MAINTENANCE},
    },
    "webhooks: housekeeping": {
        "task": "deliveries.tasks.housekeeping",
        "schedule": 600.0,
        "options": {"queue": MAINTENANCE},
    },
}


def __getattr__(name: str) -> Any:
    if name not in ("broker_url", "broker_transport_options"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    redis = RedisAddress.parse(settings.REDIS_URL)
    # `CELERY_BROKER_URL` of the Django settings, or the Redis that holds the wake-ups.
    broker_url: str = getattr(settings, "CELERY_BROKER_URL", "") or redis.broker_url
    if name == "broker_url":
        return broker_url
    sentinel = redis.transport_options if broker_url == redis.broker_url else {}
    return {**sentinel, **_broker_transport_options}


def __dir__() -> list[str]:
    return [*globals(), "broker_url", "broker_transport_options"]  # Celery takes what it finds here
