"""System checks of what sending needs besides the subscriptions' own."""

from collections.abc import Sequence
from typing import Any

import redis
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.db import DatabaseError, connection
from psycopg_pool import PoolTimeout

from deliveries.monitoring import workers
from deliveries.monitoring.sweeps import missed_after, seconds_since_sweep
from deliveries.waking import wakeups
from deliveries.waking.queues import DELIVER, MAINTENANCE, RECOVER
from deliveries.waking.redis_address import RedisAddress

# What each queue is for.
QUEUES = {
    DELIVER: "nothing is sent to receivers that answer",
    RECOVER: "nothing is sent to receivers that are failing",
    MAINTENANCE: "nothing is swept, probed or removed",
}


@register("webhooks")
def check_redis(**_: Any) -> Sequence[CheckMessage]:
    address = getattr(settings, "REDIS_URL", None)
    if not address:
        wrong = "REDIS_URL is not set"
    else:
        try:
            RedisAddress.parse(address)
            return []
        except ValueError as error:
            wrong = f"REDIS_URL cannot be used: {error}"
    return [
        Error(
            f"{wrong}.",
            hint="Set REDIS_URL in the settings to the address of Redis or Valkey, such as "
            '"redis://127.0.0.1:6379/0"; RabbitMQ as the broker does not replace it.',
            id="webhooks.E010",
        )
    ]


@register("webhooks", deploy=True)
def check_what_runs(**_: Any) -> Sequence[CheckMessage]:
    """Whether the database answers, and, as Redis knows it, whether beat and workers are there."""
    found: list[CheckMessage] = []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, PoolTimeout) as error:
        found.append(
            Warning(
                f"The database cannot be used: {' '.join(str(error).split())}",
                hint="Start PostgreSQL, or correct DATABASE_URL.",
                id="webhooks.W110",
            )
        )
    try:
        since, seen = seconds_since_sweep(), workers.seen()
        version = str(wakeups.client().info("server").get("redis_version", ""))
    except (redis.RedisError, ValueError) as error:
        found.append(
            Warning(
                "Redis cannot be used, so it is not known whether beat and workers run: "
                f"{' '.join(str(error).split())}",
                hint="Start Redis or Valkey, or correct REDIS_URL.",
                id="webhooks.W111",
            )
        )
        return found
    if version.partition(".")[0] in ("2", "3", "4", "5", "6"):
        found.append(
            Warning(
                f"Redis is {version}, which has no BZMPOP: deliveries wait for seconds.",
                hint="Use Redis 7.0 or newer, or Valkey.",
                id="webhooks.W114",
            )
        )
    if since is None or since > missed_after():
        when = "never" if since is None else f"{since:.0f} s ago"
        found.append(
            Warning(
                f"The last sweep was {when}: beat or the queue {MAINTENANCE!r} has nobody.",
                hint="Start beat: `celery -A webhooks_project beat`, or all by `manage.py up`.",
                id="webhooks.W112",
            )
        )
    served = {queue for worker in seen for queue in worker.queues}
    found += [
        Warning(
            f"No worker serves the queue {queue!r}: {without}.",
            hint="Start one: `celery -A webhooks_project worker --pool threads --concurrency 128 "
            f"-Q {queue}`, or all by `manage.py up`.",
            id="webhooks.W113",
        )
        for queue, without in QUEUES.items()
        if queue not in served
    ]
    return found
