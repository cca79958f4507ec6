"""What processes count, and share in Redis: any process can tell the sums of all of them.

A process counts in its memory, and adds that to the sums about once a second, so that a delivery
costs a microsecond and no round trip. What is added is added once, also if the answer to it is
lost. While Redis is away the process keeps its counts; one that is killed takes those of the last
second with it; and a Redis that loses its data begins at nothing, as Prometheus expects of
counters. What must be exact for ever is in the tables.

Of results the process also keeps the counts of each minute, and of each subscription, for the
roll-ups (`rollups`).
"""

from __future__ import annotations

import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import redis
from django.dispatch import receiver

from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS, names
from deliveries.monitoring.rollups import Rollups, rollups
from deliveries.values import Result
from deliveries.waking.queues import DELIVER, RECOVER
from deliveries.waking.wakeups import client, keys_of, redis_outage
from subscriptions import signals

_SUMS = "webhooks:{counts}:sums"
# A batch of counts has a name of its own, remembered for as long as it might be sent again.
_ADD = """
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', 60) then return end
for number = 1, #ARGV, 2 do
    redis.call('HINCRBY', KEYS[1], ARGV[number], ARGV[number + 1])
end
"""


class Counts:
    """The counts of this process that are not in the sums yet. Thread-safe."""

    def __init__(self, rollups: Rollups | None = None) -> None:
        self._lock = threading.Lock()
        self._rollups = rollups
        self._counts: Counter[str] = Counter()
        # Of the results of one minute (of Unix time), and by subscription: the number of its id.
        self._minute = 0
        self._results: Counter[str] = Counter()
        self._succeeded: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._flushing = threading.Lock()
        # What was sent, and may or may not have been added.
        self._sent: tuple[str, Counter[str]] | None = None

    def add(self, counts: Mapping[str, int]) -> None:
        with self._lock:
            self._counts.update(counts)

    def add_results(self, written: Iterable[tuple[Result, str]]) -> None:
        """Count results that were written down, each with its delivery's new status."""
        minute = int(time.time()) // 60
        with self._lock:
            if minute != self._minute:
                self._hand_over(minute)
            counts, succeeded, failed = self._results, self._succeeded, self._failed
            for result, status in written:
                judged = result.judged
                number = result.lane.subscription_id.int
                if status == "succeeded":
                    succeeded[number] += 1
                else:
                    failed[number] += 1
                counts["delivery " + ("retried" if status == "pending" else status)] += 1
                counts["attempt " + judged.code] += 1
                duration = judged.duration_ms
                counts[_ATTEMPT_BUCKETS[bisect_left(ATTEMPT_BOUNDS, duration)]] += 1
                counts["attempt_ms sum"] += duration
                published_at = result.delivery.published_at
                if status == "succeeded" and published_at is not None:
                    taken = max(0, int((result.started_at - published_at) * 1000) + duration)
                    counts[_ARRIVAL_BUCKETS[bisect_left(ARRIVAL_BOUNDS, taken)]] += 1
                    counts["arrival_ms sum"] += taken

    def _hand_over(self, minute: int) -> None:
        """What follows is of this minute. The lock is held."""
        if self._results:
            self._counts.update(self._results)
            if self._rollups is not None:
                self._rollups.add(self._minute, self._results, self._succeeded, self._failed)
            self._results, self._succeeded, self._failed = Counter(), Counter(), Counter()
        self._minute = minute

    def flush(self) -> bool:
        """Add the counts to the sums; whether none is left. Takes half a second at most.

        Those for the roll-ups are handed over to them, whatever becomes of the others.
        """
        with self._flushing:
            with self._lock:
                self._hand_over(self._minute)
            while not redis_outage.lasting():
                with self._lock:
                    if self._sent is None:
                        if not self._counts:
                            return True
                        self._sent = uuid.uuid4().hex, self._counts
                        self._counts = Counter()
                name, counts = self._sent
                arguments = [text for item in counts.items() for text in item]
                try:
                    client().eval(_ADD, 2, _SUMS, f"webhooks:{{counts}}:{name}", *arguments)
                except redis.RedisError as error:
                    redis_outage.begin(error)
                    return False
                self._sent = None
                redis_outage.end()
        return False


_ATTEMPT_BUCKETS = names("attempt_ms", ATTEMPT_BOUNDS)
_ARRIVAL_BUCKETS = names("arrival_ms", ARRIVAL_BOUNDS)

counts = Counts(rollups)


def _count_now(name: str, number: int) -> None:
    counts.add({name: number})
    counts.flush()


@receiver(signals.subscriptions_tripped)
def _on_trip(*, subscription_ids: list[uuid.UUID], **_: Any) -> None:
    signals.after_commit(partial(_count_now, "trips", len(subscription_ids)))


@receiver(signals.subscriptions_enabled)
def _on_reset(*, tripped_ids: list[uuid.UUID], **_: Any) -> None:
    if tripped_ids:
        signals.after_commit(partial(_count_now, "resets", len(tripped_ids)))


class Sums(NamedTuple):
    """The sums of all processes, and what Redis itself knows, by queue."""

    counts: dict[str, int]
    wake_ups: dict[str, int]
    waiting: dict[str, int]

    def of(self, name: str) -> dict[str, int]:
        """Those whose name begins with the word `name`, by what follows."""
        return {
            rest: number
            for key, number in self.counts.items()
            if (parts := key.split(" ", 1))[0] == name
            for rest in parts[1:]
        }


def read_sums() -> Sums:
    """In one round trip. Raises `redis.RedisError`."""
    with client().pipeline(transaction=False) as pipeline:
        pipeline.hgetall(_SUMS)
        for queue in (DELIVER, RECOVER):
            due, _, wake_ups = keys_of(queue)
            pipeline.get(wake_ups)
            pipeline.zcard(due)
        found, *numbers = pipeline.execute()
    return Sums(
        {key.decode(): int(value) for key, value in found.items()},
        {DELIVER: int(numbers[0] or 0), RECOVER: int(numbers[2] or 0)},
        {DELIVER: numbers[1], RECOVER: numbers[3]},
    )
