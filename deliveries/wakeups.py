"""Wake-ups: the Celery messages that say "this subscription has something to send".

A wake-up carries nothing that would be missed. The rows are committed before it is sent, and
the sweep finds due rows that nobody was woken for; so a broker that is down costs some seconds,
never an event, and nobody waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from functools import cache
from uuid import UUID

import kombu.exceptions
import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from deliveries.queues import DELIVER, RECOVER
from deliveries.redis_address import RedisAddress
from subscriptions.conf import conf

logger = logging.getLogger(__name__)

# How long a flag vouches for a message that may be lost. A queue that is longer than this gets
# a second, idle message; a lost one delays its subscription by this and one sweep at most.
FLAG_SECONDS = 15
# How long nobody tries a broker that failed.
OUTAGE_SECONDS = 3.0
# The longest that one command to Redis may take, in seconds.
REDIS_TIMEOUT = 0.3


class Outage:
    """Remembers that a server is away, so that each caller does not find out anew.

    One warning when it begins, one line when it ends.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._until = 0.0
        self._away = False

    def lasting(self) -> bool:
        return time.monotonic() < self._until

    def begin(self, error: Exception) -> None:
        with self._lock:
            first = not self._away
            self._away = True
            self._until = time.monotonic() + OUTAGE_SECONDS
        if first:
            logger.warning(
                "%s cannot be reached (%s: %s); deliveries wait for the sweep until it is back",
                self._what,
                type(error).__name__,
                error,
            )

    def end(self) -> None:
        if self._away:
            with self._lock:
                self._away = False
            logger.info("%s is back", self._what)


flags_outage = Outage("Redis (wake-up flags)")
broker_outage = Outage("the Celery broker")


@cache
def flags() -> redis.Redis:
    """The client that holds the wake-up flags. One attempt, short timeouts: flags are a saving."""
    return RedisAddress.parse(settings.REDIS_URL).client(
        socket_timeout=REDIS_TIMEOUT,
        socket_connect_timeout=REDIS_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


def _flag(subscription_id: UUID, queue: str) -> str:
    return f"webhooks:woken:{queue}:{subscription_id}"


def _raise_flags(subscription_ids: Sequence[UUID], queue: str) -> list[UUID]:
    """Flag the subscriptions; returns those that were not flagged, and so need a message."""
    if flags_outage.lasting():
        return list(subscription_ids)
    try:
        pipeline = flags().pipeline(transaction=False)
        for subscription_id in subscription_ids:
            pipeline.set(_flag(subscription_id, queue), 1, nx=True, ex=FLAG_SECONDS)
        raised = pipeline.execute()
    except redis.RedisError as error:
        flags_outage.begin(error)
        return list(subscription_ids)
    flags_outage.end()
    return [one for one, new in zip(subscription_ids, raised, strict=True) if new]


def lower_flags(subscription_ids: Sequence[UUID], queue: str) -> None:
    """Take the flags down, before the rows are looked at: who publishes later wakes anew."""
    if flags_outage.lasting() or not subscription_ids:
        return
    try:
        flags().delete(*(_flag(one, queue) for one in subscription_ids))
    except redis.RedisError as error:
        flags_outage.begin(error)


def wake(
    subscription_ids: Iterable[UUID], *, recovering: bool = False, one_by_one: bool = True
) -> int:
    """Wake subscriptions that have due deliveries; returns the number of messages sent.

    One message for each, unless there are more than `fanout_chunk` of them or `one_by_one` is
    off. Never raises for a broker or Redis that is away, and takes less than a second then.
    """
    queue = RECOVER if recovering else DELIVER
    wanted = list(dict.fromkeys(subscription_ids))
    # No flag is raised while no message can be sent: it would silence the sweep.
    if not wanted or broker_outage.lasting():
        return 0
    woken = _raise_flags(wanted, queue)
    chunk = conf().fanout_chunk
    size = 1 if one_by_one and len(woken) <= chunk else chunk
    sent = 0
    for start in range(0, len(woken), size):
        if not _send(woken[start : start + size], queue):
            lower_flags(woken[start:], queue)
            break
        sent += 1
    return sent


def wake_later(subscription_ids: Sequence[UUID], seconds: float) -> None:
    """Wake subscriptions that are failing after `seconds` (at most about a minute).

    Long delays never live in the broker: Redis hands a message out again once its visibility
    timeout is over. The sweep finds what is due later than that.
    """
    if subscription_ids and not broker_outage.lasting():
        _send(subscription_ids, RECOVER, countdown=seconds)


def _send(subscription_ids: Sequence[UUID], queue: str, countdown: float | None = None) -> bool:
    from deliveries.tasks import deliver

    try:
        deliver.apply_async(
            ([str(one) for one in subscription_ids],),
            queue=queue,
            countdown=countdown,  # type: ignore[arg-type]
        )
    except (kombu.exceptions.OperationalError, redis.RedisError, OSError) as error:
        broker_outage.begin(error)
        return False
    broker_outage.end()
    return True
