"""Wake-ups: how workers hear which subscriptions have something to send.

A publisher adds the ids of its subscriptions to a sorted set in Redis, the *due set*, after its
commit. A process that sends listens there. Only if none does is a Celery message sent: a flag,
the *bell*, says whether a message is under way or a process listens. So an idle system has one
task for a matching subscription, and a busy one shares them.

Nothing here carries anything that would be missed. The rows are committed before, and the sweep
finds due rows without a wake-up. What happens when each part is lost:

- the due set, with Redis: the sweep adds the ids again, a few seconds later;
- the message: the bell ends after `BELL_SECONDS`, and the next publisher, or the sweep, sends one;
- a process that has taken ids from the due set and died: their rows are still due, or leased
  until the lease ends, and then the sweep adds the ids again.

Without Redis the ids travel in the messages, if the broker is another server.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any
from uuid import UUID

import redis
from celery import current_app
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

from deliveries.waking.queues import DELIVER, RECOVER, TASK
from deliveries.waking.redis_address import RedisAddress
from subscriptions.conf import conf

logger = logging.getLogger(__name__)

# How long the bell stands for a message that may be lost. A message that waits longer for a
# worker gets a second one, which finds nothing.
BELL_SECONDS = 2.0
# How long a process goes on listening after the last wake-up, and how long one wait in Redis is.
# A wait must be shorter than the bell.
LISTEN_SECONDS = 5.0
WAIT_SECONDS = 1.0
# An idle Redis looks ten times a second which waits are over: each may end so many seconds late.
SHORTEST_WAIT = 0.1
# While ids are left in the due set, another worker is asked for help once in this time.
HELP_SECONDS = 1.0
# How long a server that failed is not tried again.
OUTAGE_SECONDS = 3.0
# The longest that one command to Redis may take, in seconds, besides a wait.
REDIS_TIMEOUT = 0.3
# How many ids one call of the script adds, and how many one takes.
ADDED_AT_ONCE = 1000
TAKEN_AT_ONCE = 200
# How far apart the ids of one event are in the order of the due set, in milliseconds.
SPREAD = 10


class Outage:
    """Remembers that a server is unreachable, so that not every caller waits for it.

    One warning when it begins, which says what happens `meanwhile`, one line when it ends.
    Thread-safe.
    """

    def __init__(self, what: str, meanwhile: str = "deliveries wait for the sweep") -> None:
        self._what = what
        self._meanwhile = meanwhile
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
                "%s cannot be reached (%s: %s); %s until it is back",
                self._what,
                type(error).__name__,
                error,
                self._meanwhile,
            )

    def end(self) -> None:
        if self._away:
            with self._lock:
                self._away, self._until = False, 0.0
            logger.info("%s is back", self._what)


redis_outage = Outage("Redis (wake-ups)")
broker_outage = Outage("the Celery broker")


def _client(timeout: float) -> redis.Redis:
    return RedisAddress.parse(settings.REDIS_URL).client(
        socket_timeout=timeout,
        socket_connect_timeout=REDIS_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
    )


@cache
def client() -> redis.Redis:
    """The client for all but waiting. One attempt and short timeouts: wake-ups are a saving."""
    return _client(REDIS_TIMEOUT)


@cache
def _waiting_client() -> redis.Redis:
    return _client(WAIT_SECONDS + 2)


def keys_of(queue: str) -> list[str]:
    """The keys of the due set, of the bell, and of the number of wake-ups so far."""
    # The braces keep all of them on one node of a Redis Cluster.
    return [f"webhooks:{{{queue}}}:{what}" for what in ("due", "bell", "wake-ups")]


# The order in the due set is by milliseconds. The ids of one call are `SPREAD` apart, so an event
# for somebody else does not wait behind an event for a hundred thousand subscriptions, unless a
# worker takes less than a hundred of these a second. LT: an id that is there already keeps its
# place, or gets an earlier one. NX, for the sweep, which finds again what is waiting: it keeps its
# place in any case. Returns 1 for a new bell.
_ADD = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for number = 4, #ARGV do
    redis.call('ZADD', KEYS[1], ARGV[3], now + (ARGV[2] + number - 4) * SPREAD, ARGV[number])
end
redis.call('INCRBY', KEYS[3], #ARGV - 3)
return redis.call('SET', KEYS[2], 1, 'NX', 'PX', ARGV[1]) and 1 or 0
""".replace("SPREAD", str(SPREAD))

# The bell is set again before the ids are taken: the process that takes them goes on listening.
_TAKE = """
redis.call('SET', KEYS[2], 1, 'PX', ARGV[1])
local taken = redis.call('ZPOPMIN', KEYS[1], ARGV[2])
return {redis.call('ZCARD', KEYS[1]), taken}
"""

# A publisher that adds an id after this finds no bell, and sends a message.
_STOP = """
if redis.call('ZCARD', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[2])
return 1
"""


@cache
def _script(text: str) -> Any:
    return client().register_script(text)


def _milliseconds(seconds: float) -> int:
    return int(1000 * seconds)


def wake(
    subscription_ids: Iterable[UUID | str], *, recovering: bool = False, keep_place: bool = False
) -> None:
    """Wake workers for subscriptions that have due deliveries. To be called after the commit.

    `keep_place`: those that are waiting already do not get an earlier turn.

    One round trip to Redis for a thousand ids, and a Celery message if no process listens. Never
    raises because Redis or the broker is down, and takes half a second at most for each of them
    then; the sweep finds the rows. With `task_always_eager` nothing is sent: an application's own
    tests send no requests unless they call the task.
    """
    ids = list(dict.fromkeys(map(str, subscription_ids)))
    if not ids or current_app.conf.task_always_eager:
        return
    queue = RECOVER if recovering else DELIVER
    if not redis_outage.lasting():
        try:
            if _add(ids, queue, keep_place=keep_place):
                _ring(queue)
            redis_outage.end()
            return
        except redis.RedisError as error:
            redis_outage.begin(error)
    for chunk in _chunks(ids, conf().fanout_chunk):
        if not _send(chunk, queue):
            return


def _add(ids: Sequence[str], queue: str, *, keep_place: bool) -> bool:
    """Add to the due set; whether the bell is new."""
    new = False
    for number, chunk in enumerate(_chunks(ids, ADDED_AT_ONCE)):
        first, how = number * ADDED_AT_ONCE, "NX" if keep_place else "LT"
        arguments = [_milliseconds(BELL_SECONDS), first, how, *chunk]
        new |= bool(_script(_ADD)(keys_of(queue), arguments, client=client()))
    return new


def _ring(queue: str) -> None:
    """Send the message that the bell stands for; without one, the bell must not stay."""
    if not _send([], queue):
        client().delete(keys_of(queue)[1])


def _chunks(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _send(ids: Sequence[str], queue: str) -> bool:
    """Send one message; whether that worked. The task is named, not imported."""
    if broker_outage.lasting():
        return False
    try:
        with current_app.producer_or_acquire() as producer:
            current_app.send_task(TASK, (list(ids),), queue=queue, producer=producer)
    except Exception as error:
        # Whatever a broker may raise, one that refuses the login for example: no caller can do
        # anything about it, and the sweep finds the rows.
        broker_outage.begin(error)
        return False
    broker_outage.end()
    return True


class Listener:
    """Takes ids from the due set of one queue, for one thread."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._names = keys_of(queue)
        self._help_after = 0.0
        self._rung_at = 0.0

    def take(self, limit: int, *, wait: float) -> list[str]:
        """Ids to claim, `limit` at most, after up to `wait` seconds for the first.

        Does not wait at all for less than `SHORTEST_WAIT`. Raises `redis.RedisError`.
        """
        limit = min(limit, TAKEN_AT_ONCE)
        if not self._bell_outlasts_a_wait():
            self._rung_at = time.monotonic()
            left, taken = _script(_TAKE)(
                self._names, [_milliseconds(BELL_SECONDS), limit], client=client()
            )
            if left:
                self._ask_for_help()
            if taken:
                return [member.decode() for member in taken[::2]]
        due_set = self._names[:1]
        found: Any = (
            client().zmpop(1, due_set, min=True, count=limit)
            if wait < SHORTEST_WAIT
            else _waiting_client().bzmpop(
                min(wait, WAIT_SECONDS), 1, due_set, min=True, count=limit
            )
        )
        if found is None:
            return []
        if len(found[1]) == limit:
            # There may be more, and the script says whether there is.
            self._rung_at = 0.0
        return [member.decode() for member, _ in found[1]]

    def _bell_outlasts_a_wait(self) -> bool:
        """Whether the bell stays up for another wait, without being rung again."""
        return time.monotonic() - self._rung_at < 0.9 * (BELL_SECONDS - WAIT_SECONDS)

    def silence(self) -> None:
        """Take the bell down in any case. Raises `redis.RedisError`."""
        self._rung_at = 0.0
        client().delete(self._names[1])

    def stop(self) -> bool:
        """Take the bell down, if nothing is due; whether it was. Raises `redis.RedisError`."""
        self._rung_at = 0.0
        return bool(_script(_STOP)(self._names, client=client()))

    def _ask_for_help(self) -> None:
        """More is due than one claim takes: other workers share it."""
        now = time.monotonic()
        if now >= self._help_after:
            self._help_after = now + HELP_SECONDS
            _send([], self._queue)
