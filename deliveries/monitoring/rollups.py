"""Roll-ups: how many deliveries went how, each minute, and each hour for each subscription.

They are for charts and lists, which could not count millions of rows. A process adds up what it
settled (`counts`), and writes that to the tables about every five seconds, all of it in one
statement. What is written is added once, also if the answer to it is lost. While the database is
away nothing can be settled either, and what was counted before waits. What is lost with a process
that is killed are its counts of the last seconds, never deliveries; and attempts of outcome
`unknown`, which a killed worker leaves behind, are in the tables of deliveries alone.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.db import DatabaseError, InterfaceError, connection
from django.utils import timezone

from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS, names, percentile
from deliveries.waking.wakeups import Outage
from subscriptions.database import Statement, worker_cursor

logger = logging.getLogger(__name__)

# How many counts of hours a process keeps that it cannot write; with more all of them are
# discarded. So many take some 30 MB.
MAX_KEPT = 100_000

# The writer's number is the highest that it has written: what is sent again is not added again.
# Each process adds in the same order, hours before the minute that all of them share, so that none
# waits for another that waits for it. All rows are found by primary keys.
_FLUSH = Statement("""
WITH once AS MATERIALIZED (
    INSERT INTO deliveries_rollupwriter AS w (id, number, written_at)
    VALUES (%(writer)s::uuid, %(number)s::bigint, now())
    ON CONFLICT (id) DO UPDATE SET number = excluded.number, written_at = now()
    WHERE w.number < excluded.number
    RETURNING number
), minute AS (
    INSERT INTO deliveries_minuterollup AS m (
        minute, succeeded, failed, retried, held, attempt_ms, arrival_ms
    )
    SELECT to_timestamp(minute * 60), succeeded, failed, retried, held, attempt_ms, arrival_ms
    FROM json_to_recordset(%(minutes)s::json) AS r (
        minute bigint, succeeded bigint, failed bigint, retried bigint, held bigint,
        attempt_ms bigint[], arrival_ms bigint[]
    )
    WHERE EXISTS (SELECT FROM once)
    ORDER BY minute
    ON CONFLICT (minute) DO UPDATE SET
        succeeded = m.succeeded + excluded.succeeded, failed = m.failed + excluded.failed,
        retried = m.retried + excluded.retried, held = m.held + excluded.held,
        attempt_ms = ARRAY(
            SELECT a + b FROM unnest(m.attempt_ms, excluded.attempt_ms)
            WITH ORDINALITY AS both_of (a, b, n) ORDER BY n
        ),
        arrival_ms = ARRAY(
            SELECT a + b FROM unnest(m.arrival_ms, excluded.arrival_ms)
            WITH ORDINALITY AS both_of (a, b, n) ORDER BY n
        )
)
INSERT INTO deliveries_hourrollup AS h (hour, subscription_id, succeeded, failed)
SELECT to_timestamp(hour * 3600), id, succeeded, failed
FROM json_to_recordset(%(hours)s::json) AS r (
    hour bigint, id uuid, succeeded bigint, failed bigint
)
WHERE EXISTS (SELECT FROM once)
ORDER BY hour, id
ON CONFLICT (hour, subscription_id) DO UPDATE SET
    succeeded = h.succeeded + excluded.succeeded, failed = h.failed + excluded.failed
""")

_OUTCOMES = ("succeeded", "failed", "retried", "held")
_ATTEMPT_BUCKETS = names("attempt_ms", ATTEMPT_BOUNDS)
_ARRIVAL_BUCKETS = names("arrival_ms", ARRIVAL_BOUNDS)

_outage = Outage("PostgreSQL (roll-ups)", "statistics wait")


class Rollups:
    """The counts of this process that are not in the tables yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By minute; and by hour and the number of a subscription's id: succeeded, failed.
        self._minutes: dict[int, Counter[str]] = {}
        self._hours: dict[tuple[int, int], list[int]] = {}
        self._flushing = threading.Lock()
        self._writer = str(uuid.uuid4())
        self._number = 0
        # What was sent, and may or may not have been added.
        self._sent: dict[str, Any] | None = None

    def add(
        self,
        minute: int,
        results: Counter[str],
        succeeded: Mapping[int, int],
        failed: Mapping[int, int],
    ) -> None:
        """Take the counts of one minute; `succeeded` and `failed` attempts by subscription."""
        with self._lock:
            self._minutes.setdefault(minute, Counter()).update(results)
            for which, numbers in enumerate((succeeded, failed)):
                for subscription, number in numbers.items():
                    hour = self._hours.setdefault((minute // 60, subscription), [0, 0])
                    hour[which] += number

    def flush(self) -> bool:
        """Write the counts to the tables; whether none is left."""
        with self._flushing:
            while self._sent is not None or self._prepare():
                try:
                    with worker_cursor() as cursor:
                        cursor.execute(_FLUSH, self._sent or {})
                except (DatabaseError, InterfaceError) as error:
                    # Also where the tables are not there yet, because nobody has migrated.
                    _outage.begin(error)
                    self._bound()
                    return False
                self._sent = None
                _outage.end()
        return True

    def _prepare(self) -> bool:
        with self._lock:
            minutes, self._minutes = self._minutes, {}
            hours, self._hours = self._hours, {}
        if not minutes:
            return False
        self._number += 1
        self._sent = {
            "writer": self._writer,
            "number": self._number,
            "minutes": json.dumps([_minute_row(*one) for one in minutes.items()]),
            "hours": json.dumps(
                [
                    {
                        "hour": hour,
                        "id": str(uuid.UUID(int=subscription)),
                        "succeeded": succeeded,
                        "failed": failed,
                    }
                    for (hour, subscription), (succeeded, failed) in hours.items()
                ]
            ),
        }
        return True

    def _bound(self) -> None:
        with self._lock:
            if len(self._hours) + len(self._minutes) <= MAX_KEPT:
                return
            self._minutes, self._hours = {}, {}
        logger.error("statistics were discarded: they could not be written for too long")


rollups = Rollups()


def _minute_row(minute: int, counts: Counter[str]) -> dict[str, Any]:
    return {
        "minute": minute,
        **{outcome: counts["delivery " + outcome] for outcome in _OUTCOMES},
        "attempt_ms": [counts[name] for name in _ATTEMPT_BUCKETS],
        "arrival_ms": [counts[name] for name in _ARRIVAL_BUCKETS],
    }


class Traffic(NamedTuple):
    """What was settled from `start` on, for a while.

    `succeeded`, `failed` (for good), `retried` (later) and `held` (the circuit tripped) are what
    attempts made of their deliveries. `attempt_ms` and `arrival_ms` are numbers by bucket: of all
    attempts, and of deliveries that arrived at the first attempt, from publish to arrival.
    """

    start: datetime
    succeeded: int
    failed: int
    retried: int
    held: int
    attempt_ms: list[int]
    arrival_ms: list[int]

    @property
    def attempts(self) -> int:
        return self.succeeded + self.failed + self.retried + self.held

    @property
    def success_rate(self) -> float | None:
        """Of the attempts, from 0 to 1; None without attempts."""
        return self.succeeded / self.attempts if self.attempts else None

    def attempt_percentile(self, share: float) -> float | None:
        """In milliseconds; see `percentile`."""
        return percentile(self.attempt_ms, ATTEMPT_BOUNDS, share)

    def arrival_percentile(self, share: float) -> float | None:
        """In milliseconds; see `percentile`."""
        return percentile(self.arrival_ms, ARRIVAL_BOUNDS, share)


def total(traffic: Sequence[Traffic]) -> Traffic:
    """All of it together. Of nothing there is no total."""
    return Traffic(
        traffic[0].start,
        sum(one.succeeded for one in traffic),
        sum(one.failed for one in traffic),
        sum(one.retried for one in traffic),
        sum(one.held for one in traffic),
        [sum(numbers) for numbers in zip(*(one.attempt_ms for one in traffic), strict=True)],
        [sum(numbers) for numbers in zip(*(one.arrival_ms for one in traffic), strict=True)],
    )


_LAST_MINUTES = """
SELECT minute, succeeded, failed, retried, held, attempt_ms, arrival_ms
FROM deliveries_minuterollup WHERE minute >= %(since)s
"""


def last_minutes(minutes: int, *, step: int = 1, now: datetime | None = None) -> list[Traffic]:
    """The last so many minutes, the present one among them, oldest first, `step` at a time.

    `minutes` is a multiple of `step`. One statement, which reads one row a minute.
    """
    last = _whole(now or timezone.now(), timedelta(minutes=1))
    since = last - timedelta(minutes=minutes - 1)
    with connection.cursor() as cursor:
        cursor.execute(_LAST_MINUTES, {"since": since})
        found = {row[0]: Traffic(*row) for row in cursor.fetchall()}
    every = [
        found.get(start) or _nothing(start)
        for start in _times(since, timedelta(minutes=1), minutes)
    ]
    if step == 1:
        return every
    return [total(every[first : first + step]) for first in range(0, minutes, step)]


def _nothing(start: datetime) -> Traffic:
    return Traffic(start, 0, 0, 0, 0, [0] * len(_ATTEMPT_BUCKETS), [0] * len(_ARRIVAL_BUCKETS))


Hour = tuple[datetime, int, int]
_HOURLY = """
SELECT subscription_id, extract(epoch FROM hour)::bigint, succeeded, failed
FROM deliveries_hourrollup
WHERE hour = ANY(%(hours)s) AND subscription_id = ANY(%(ids)s)
"""


def hourly(
    subscription_ids: Iterable[uuid.UUID], hours: int = 24, *, now: datetime | None = None
) -> dict[uuid.UUID, list[Hour]]:
    """Of each subscription the last so many hours (start, succeeded, failed attempts).

    Oldest first, the present hour among them; hours without attempts too. One statement, which
    finds each row by the primary key.
    """
    ids = list(subscription_ids)
    last = _whole(now or timezone.now(), timedelta(hours=1))
    wanted = list(_times(last - timedelta(hours=hours - 1), timedelta(hours=1), hours))
    with connection.cursor() as cursor:
        cursor.execute(_HOURLY, {"hours": wanted, "ids": ids})
        found = {(row[0], row[1]): (row[2], row[3]) for row in cursor.fetchall()}
    starts = [(hour, hour.timestamp()) for hour in wanted]
    return {one: [(hour, *found.get((one, at), (0, 0))) for hour, at in starts] for one in ids}


def _whole(moment: datetime, unit: timedelta) -> datetime:
    """The beginning of its minute or hour, of Unix time."""
    seconds = int(unit.total_seconds())
    return datetime.fromtimestamp(int(moment.timestamp()) // seconds * seconds, UTC)


def _times(first: datetime, unit: timedelta, number: int) -> Iterator[datetime]:
    return (first + n * unit for n in range(number))
