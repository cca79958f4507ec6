"""How often a stage makes a batch: pure rules on values, and a thread that keeps to them."""

from __future__ import annotations

import itertools
import threading

from deliveries.sending.stages import LARGE, Pace, Stage


def test_a_few_small_batches_begin_at_once() -> None:
    pace = Pace(per_second=100, burst=10)
    for _ in range(10):
        assert pace.wait(5.0) == 0
        pace.count(5.0, 1)


def test_beyond_these_they_begin_ten_milliseconds_apart() -> None:
    pace = Pace(per_second=100, burst=10)
    now, begun = 5.0, []
    for _ in range(30):
        now += pace.wait(now)
        begun.append(round(now, 6))
        pace.count(now, 1)
    assert begun[:10] == [5.0] * 10
    gaps = {round(later - earlier, 6) for earlier, later in itertools.pairwise(begun[11:])}
    assert gaps == {0.01}


def test_what_comes_seldom_never_waits() -> None:
    pace = Pace(per_second=100, burst=10)
    for n in range(1000):
        assert pace.wait(n / 50) == 0
        pace.count(n / 50, 1)


def test_nobody_waits_longer_than_one_interval_after_many_urgent_batches() -> None:
    pace = Pace(per_second=100, burst=10)
    for n in range(1000):
        pace.count(5.0 + n / 1000, 1)
    assert pace.wait(6.0) <= 0.01


def test_a_large_batch_is_worth_its_transaction() -> None:
    pace = Pace(per_second=100, burst=1)
    for _ in range(100):
        assert pace.wait(5.0) == 0
        pace.count(5.0, LARGE)


def test_what_comes_meanwhile_shares_a_batch_and_what_is_urgent_ends_the_wait() -> None:
    batches: list[list[int]] = []
    done = threading.Event()

    def handle(batch: list[int]) -> None:
        batches.append(batch)
        if batch[-1] == 99:
            done.set()

    # One small batch an hour: without the urgent item the test would not end.
    stage: Stage[int] = Stage("paced", handle, pace=Pace(per_second=1 / 3600, burst=0))
    stage.put(0, urgent=True)
    for number in range(1, 50):
        stage.put(number)
    stage.put(99, urgent=True)
    assert done.wait(30)
    stage.close()
    assert [one for batch in batches for one in batch] == [*range(50), 99]
