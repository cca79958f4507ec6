"""Wake-ups: the Celery messages that say "this subscription has something to send".

A wake-up carries nothing that would be missed. The rows are committed before it is sent, and
the sweep finds due rows that nobody was woken for; so a broker that is down costs some seconds,
never an event, and nobody waits for it.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

import kombu.exceptions
import redis
from celery import current_app
from django.conf import settings
from redis.backoff import NoBackoff
from redis.commands.core import Script
from redis.retry import Retry

from deliveries.sending.stages import Stage, in_a_stage
from deliveries.waking.queues import DELIVER, RECOVER
from deliveries.waking.redis_address import RedisAddress
from subscriptions.conf import conf

logger = logging.getLogger(__name__)

# How long a flag vouches for a message that may be lost, unless a lease is shorter. A queue that
# is longer than this gets a second, idle message; a lost one delays its subscription by this and
# one sweep at most.
FLAG_SECONDS = 15
# How long nobody tries a broker that failed.
OUTAGE_SECONDS = 3.0
# The longest that one command to Redis may take, in seconds.
REDIS_TIMEOUT = 0.3

_BROKER_AWAY = (
    kombu.exceptions.OperationalError,
    # kombu 5.7 and newer.
    *filter(None, [getattr(kombu.exceptions, "BatchPublishError", None)]),
    redis.RedisError,
    OSError,
)

# Into how many messages subscriptions that are woken together are divided.
MESSAGES = 10
# How far apart, in seconds, wake-ups for later may be that share a message.
COUNTDOWN_STEP = 0.2

# How long a publisher waits for its wake-ups to be sent, in seconds.
PATIENCE = 0.5


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


# Five thousand commands are work of a tenth of a second for a client in Python; one is not. The
# answer has a character for each flag: 1 if it is new.
_RAISE_ALL = """
local new = {}
for number, name in ipairs(KEYS) do
    new[number] = redis.call('SET', name, 1, 'NX', 'PX', ARGV[1]) and '1' or '0'
end
return table.concat(new)
"""
FLAGS_AT_ONCE = 1000


@cache
def _raise_all() -> Script:
    return flags().register_script(_RAISE_ALL)


def _flag(subscription_id: UUID, queue: str) -> str:
    return f"webhooks:woken:{queue}:{subscription_id}"


def _raise_flags(subscription_ids: Sequence[UUID], queue: str) -> list[UUID]:
    """Flag the subscriptions; returns those that were not flagged, and so need a message."""
    if flags_outage.lasting():
        return list(subscription_ids)
    # What a killed worker held is due again when its lease ends; its flag must be gone then.
    milliseconds = int(1000 * min(FLAG_SECONDS, conf().lease))
    names = [_flag(subscription_id, queue) for subscription_id in subscription_ids]
    raised: list[bool] = []
    try:
        if len(names) == 1:
            raised.append(bool(flags().set(names[0], 1, nx=True, px=milliseconds)))
        else:
            for start in range(0, len(names), FLAGS_AT_ONCE):
                answer = _raise_all()(
                    names[start : start + FLAGS_AT_ONCE], [milliseconds], client=flags()
                )
                raised += [new == b"1"[0] for new in answer]
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


@dataclass(slots=True)
class _Order:
    """Wake-ups to be sent. `done` is set once they are, or cannot be."""

    subscription_ids: list[UUID]
    queue: str
    one_by_one: bool
    countdown: float | None = None
    done: threading.Event = field(default_factory=threading.Event)


class _Waker:
    """Sends wake-ups from a thread of its own, so that nobody waits for a broker that hangs.

    Orders that gather while it is busy share their messages.
    """

    def __init__(self) -> None:
        self._stage: Stage[_Order] = Stage("wake", self._handle)
        # Set while an order waits in vain: who comes after it does not wait at all.
        self._stuck = False

    def order(self, order: _Order, patience: float) -> None:
        if current_app.conf.task_always_eager:
            # A stage that runs the task itself would wait for itself; the sweep finds the rows.
            if not in_a_stage():
                self._handle([order])
            return
        self._stage.put(order)
        if patience and not self._stuck and not order.done.wait(patience):
            self._stuck = True

    def _handle(self, orders: list[_Order]) -> None:
        try:
            for queue in (DELIVER, RECOVER):
                now = [one for one in orders if one.queue == queue and one.countdown is None]
                if now:
                    _send_now(now, queue)
            later = [one for one in orders if one.countdown is not None]
            if later:
                _send_later(later)
        finally:
            self._stuck = False
            for one in orders:
                one.done.set()


_waker = _Waker()


def _renew_waker() -> None:
    # Its thread is the parent's.
    global _waker
    _waker = _Waker()


os.register_at_fork(after_in_child=_renew_waker)


def wake(
    subscription_ids: Iterable[UUID],
    *,
    recovering: bool = False,
    one_by_one: bool = True,
    patience: float = PATIENCE,
) -> None:
    """Wake subscriptions that have due deliveries.

    One message for each; `fanout_chunk` in a message if there are more of them than that; with
    `one_by_one` off, about ten messages for all. Returns when the messages are with the broker,
    and after `patience` seconds in any case; never raises because of a broker or a Redis that is
    away.
    """
    wanted = list(dict.fromkeys(subscription_ids))
    if wanted and not broker_outage.lasting():
        queue = RECOVER if recovering else DELIVER
        _waker.order(_Order(wanted, queue, one_by_one), patience)


def wake_later(subscription_ids: Iterable[UUID], seconds: float) -> None:
    """Wake subscriptions that are failing after `seconds` (at most about a minute).

    Long delays never live in a message: a worker keeps it in memory until it is time, and takes
    it along if it dies. The sweep finds what is due later than that.
    """
    wanted = list(subscription_ids)
    if wanted and not broker_outage.lasting():
        _waker.order(_Order(wanted, RECOVER, True, countdown=seconds), patience=0)


def _send_now(orders: list[_Order], queue: str) -> None:
    # No flag is raised while no message can be sent: it would silence the sweep.
    if broker_outage.lasting():
        return
    wanted = list(dict.fromkeys(one for order in orders for one in order.subscription_ids))
    woken = _raise_flags(wanted, queue)
    if not all(order.one_by_one for order in orders):
        messages = _shared(woken)
    else:
        messages = _chunks(woken, 1 if len(woken) <= conf().fanout_chunk else conf().fanout_chunk)
    if messages and not _send(messages, queue):
        lower_flags(woken, queue)


def _send_later(orders: list[_Order]) -> None:
    """Receivers that timed out together are woken together: in one message for many of them."""
    together: dict[float, list[UUID]] = {}
    for order in orders:
        seconds = order.countdown or 0.0
        if len(orders) > 1:
            # Up, not down: who is woken too early finds nothing.
            seconds = math.ceil(seconds / COUNTDOWN_STEP) * COUNTDOWN_STEP
        together.setdefault(seconds, []).extend(order.subscription_ids)
    for seconds, ids in together.items():
        if not broker_outage.lasting():
            _send(_shared(list(dict.fromkeys(ids))), RECOVER, countdown=seconds)


def _shared(wanted: list[UUID]) -> list[list[UUID]]:
    """About ten messages, so that ten workers can share them; `fanout_chunk` in one at most."""
    return _chunks(wanted, min(conf().fanout_chunk, max(1, len(wanted) // MESSAGES)))


def _chunks(wanted: list[UUID], size: int) -> list[list[UUID]]:
    return [wanted[start : start + size] for start in range(0, len(wanted), size)]


def _send(messages: Sequence[Sequence[UUID]], queue: str, countdown: float | None = None) -> bool:
    """Send wake-ups, all of them in one round trip if the broker is Redis; whether that worked."""
    from deliveries.tasks import deliver

    try:
        with current_app.producer_or_acquire() as producer, contextlib.ExitStack() as batch:
            # Before kombu 5.7 each message is a round trip.
            if len(messages) > 1 and hasattr(producer, "batch"):
                batch.enter_context(producer.batch())
            for subscription_ids in messages:
                deliver.apply_async(
                    ([str(one) for one in subscription_ids],),
                    queue=queue,
                    countdown=countdown,  # type: ignore[arg-type]
                    producer=producer,
                )
    except _BROKER_AWAY as error:
        broker_outage.begin(error)
        return False
    broker_outage.end()
    return True
