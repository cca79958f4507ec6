"""Roll-ups: what is added up, what is written, and what two processes do at once."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from deliveries.keeping.housekeeping import KEEP_MINUTES_DAYS, prune_rollups
from deliveries.models import HourRollup, MinuteRollup, RollupWriter
from deliveries.monitoring import rollups as rolling_up
from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS, percentile
from deliveries.monitoring.rollups import Rollups, hourly, last_minutes, total

MINUTE = 29_600_000
AT = datetime.fromtimestamp(MINUTE * 60, UTC)
BOUNDS = (10, 20, 100)


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([4, 0, 0, 0], 0.5, 5),
        ([4, 0, 0, 0], 1.0, 10),
        ([2, 2, 0, 0], 0.75, 15),
        ([0, 0, 4, 0], 0.5, 60),
        ([1, 0, 0, 1], 0.5, 10),
        ([1, 0, 0, 1], 0.99, inf),
        ([0, 0, 0, 3], 0.5, inf),
        ([0, 1, 0, 0], 0.0, 10),
    ],
)
def test_a_percentile_lies_within_its_bucket(
    buckets: list[int], share: float, expected: float | None
) -> None:
    assert percentile(buckets, BOUNDS, share) == expected


def counted(succeeded: int = 0, failed: int = 0, attempt_ms: int = 0) -> Counter[str]:
    counts = Counter({"delivery succeeded": succeeded, "delivery retried": failed})
    counts["attempt_ms 25"] = succeeded + failed
    counts["arrival_ms inf"] = succeeded
    return counts


def add(rollups: Rollups, one: uuid.UUID, succeeded: int = 0, failed: int = 0) -> None:
    rollups.add(MINUTE, counted(succeeded, failed), {one.int: succeeded}, {one.int: failed})


@pytest.mark.django_db
def test_what_was_counted_is_read_again() -> None:
    one, other = uuid.uuid4(), uuid.uuid4()
    rollups = Rollups()
    add(rollups, one, 3, 1)
    assert rollups.flush()
    add(rollups, one, 2)
    rollups.add(MINUTE + 1, counted(5), {other.int: 5}, {})
    assert rollups.flush()

    minutes = last_minutes(3, now=AT + timedelta(minutes=1, seconds=59))
    assert [one.start for one in minutes] == [AT + timedelta(minutes=n) for n in (-1, 0, 1)]
    assert [one.succeeded for one in minutes] == [0, 5, 5]
    assert minutes[1].retried == 1
    assert minutes[1].attempts == 6
    assert minutes[1].success_rate == 5 / 6
    assert minutes[0].success_rate is None
    assert 10 <= (minutes[1].attempt_percentile(0.5) or 0) <= 25
    assert minutes[1].arrival_percentile(0.5) == inf
    together = total(minutes)
    assert sum(together.attempt_ms) == together.attempts == 11
    assert last_minutes(3, step=3, now=AT + timedelta(minutes=1)) == [together]

    hour = AT.replace(minute=0)
    assert hourly([one, other, uuid.UUID(int=0)], 2, now=AT) == {
        one: [(hour - timedelta(hours=1), 0, 0), (hour, 5, 1)],
        other: [(hour - timedelta(hours=1), 0, 0), (hour, 5, 0)],
        uuid.UUID(int=0): [(hour - timedelta(hours=1), 0, 0), (hour, 0, 0)],
    }


@pytest.mark.django_db(transaction=True)
def test_processes_that_write_at_once_lose_nothing_and_do_not_deadlock(
    at_once: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, times = 8, 20
    ids = [uuid.uuid4() for _ in range(50)]

    def run(number: int) -> None:
        mine = Rollups()
        # Each in an order of its own.
        order = ids[number:] + ids[:number]
        for _ in range(times):
            for one in order:
                add(mine, one, 1, 2)
            while not mine.flush():
                pass

    at_once(run, processes)
    assert hourly(ids, 1, now=AT) == {
        one: [(AT.replace(minute=0), processes * times, 2 * processes * times)] for one in ids
    }
    (minute,) = last_minutes(1, now=AT)
    assert minute.succeeded == processes * times * len(ids)
    assert minute.retried == 2 * minute.succeeded
    assert sum(minute.attempt_ms) == 3 * minute.succeeded
    assert RollupWriter.objects.count() == processes


@pytest.mark.django_db
def test_what_is_written_again_because_the_answer_was_lost_counts_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = uuid.uuid4()
    rollups = Rollups()
    real = rolling_up.worker_cursor

    class LosesTheAnswer:
        def __enter__(self) -> Any:
            with real() as cursor:
                self.cursor = cursor
                return self

        def execute(self, *arguments: Any) -> None:
            self.cursor.execute(*arguments)
            raise OperationalError("no answer")

        def __exit__(self, *_: object) -> None:
            pass

    add(rollups, one, 3)
    monkeypatch.setattr(rolling_up, "worker_cursor", LosesTheAnswer)
    assert not rollups.flush()
    add(rollups, one, 4)
    assert not rollups.flush()
    monkeypatch.undo()
    assert rollups.flush()
    assert hourly([one], 1, now=AT) == {one: [(AT.replace(minute=0), 7, 0)]}
    assert last_minutes(1, now=AT)[0].succeeded == 7


def test_counts_that_cannot_be_written_are_kept_up_to_a_limit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away() -> Any:
        raise OperationalError("away")

    monkeypatch.setattr(rolling_up, "worker_cursor", away)
    monkeypatch.setattr(rolling_up, "MAX_KEPT", 10)
    rollups = Rollups()
    for _ in range(5):
        add(rollups, uuid.uuid4(), 1)
        assert not rollups.flush()
    assert "discarded" not in caplog.text
    for _ in range(10):
        add(rollups, uuid.uuid4(), 1)
    assert not rollups.flush()
    assert "statistics were discarded" in caplog.text
    assert not rollups._hours


@pytest.mark.django_db
def test_old_rollups_go(configure: Callable[..., None]) -> None:
    configure(keep_statistics_days=2)
    now = timezone.now()
    empty = {"attempt_ms": [0] * (len(ATTEMPT_BOUNDS) + 1), "arrival_ms": [0] * len(ARRIVAL_BOUNDS)}
    for days in (1, KEEP_MINUTES_DAYS + 1):
        MinuteRollup.objects.create(
            minute=now - timedelta(days=days), succeeded=1, failed=0, retried=0, held=0, **empty
        )
    for days in (1, 3):
        HourRollup.objects.create(
            hour=now - timedelta(days=days), subscription_id=uuid.uuid4(), succeeded=1, failed=0
        )
    for days in (0, 3):
        RollupWriter.objects.create(
            id=uuid.uuid4(), number=1, written_at=now - timedelta(days=days)
        )
    prune_rollups()
    assert MinuteRollup.objects.get().minute == now - timedelta(days=1)
    assert HourRollup.objects.get().hour == now - timedelta(days=1)
    assert RollupWriter.objects.get().written_at == now


@pytest.mark.django_db
def test_hours_are_found_by_the_primary_key() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(
            "EXPLAIN " + rolling_up._HOURLY, {"hours": [AT], "ids": [uuid.uuid4(), uuid.uuid4()]}
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "deliveries_hourrollup_pkey" in plan
    assert "hour = ANY" in plan
