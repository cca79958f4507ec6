"""Stages: who shares a batch, and what is put for later."""

from __future__ import annotations

import threading
import time

import pytest

from deliveries.stage import LARGE, Stage, every, rest
from tests.webhooks_project.waiting import eventually


def test_what_comes_meanwhile_shares_a_batch() -> None:
    batches: list[list[int]] = []
    begun, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def handle(batch: list[int]) -> None:
        batches.append(batch)
        begun.set()
        go_on.wait(30)
        if batch[-1] == 99:
            done.set()

    stage: Stage[int] = Stage("test", handle)
    stage.put(0)
    assert begun.wait(30)
    for number in range(1, 100):
        stage.put(number)
    go_on.set()
    assert done.wait(30)
    stage.close()
    assert batches == [[0], list(range(1, 100))]


def test_what_is_put_for_later_comes_when_it_is_due_and_holds_up_nothing() -> None:
    began = time.monotonic()
    seen: list[tuple[str, float]] = []
    done = threading.Event()

    def handle(batch: list[str]) -> None:
        seen.extend((item, time.monotonic() - began) for item in batch)
        if "later" in batch:
            done.set()

    stage: Stage[str] = Stage("test", handle)
    stage.put_later("later", 0.2)
    stage.put("now")
    assert done.wait(30)
    stage.close()
    assert [item for item, _ in seen] == ["now", "later"]
    assert seen[1][1] >= 0.2


def test_a_stage_that_is_closed_handles_what_it_was_given_also_what_was_for_later() -> None:
    seen: list[int] = []
    stage: Stage[int] = Stage("test", seen.extend)
    stage.put_later(2, 3600)
    stage.put(1)
    stage.close()
    assert sorted(seen) == [1, 2]


def test_a_batch_that_fails_is_logged_and_the_next_one_is_handled() -> None:
    seen: list[int] = []

    def handle(batch: list[int]) -> None:
        seen.extend(batch)
        if 1 in batch:
            raise RuntimeError("a mistake")

    stage: Stage[int] = Stage("test", handle, max_batch=1)
    stage.put(1)
    stage.put(2)
    stage.close()
    assert seen == [1, 2]


def test_what_was_put_behind_a_wake_up_is_handled_before_the_end() -> None:
    seen: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def handle(batch: list[int]) -> None:
        seen.extend(batch)
        begun.set()
        go_on.wait(30)

    stage: Stage[int] = Stage("test", handle)
    stage.put(0)
    begun.wait(30)
    stage.wake()
    stage.put(1)
    closing = threading.Thread(target=stage.close)
    closing.start()
    eventually(lambda: stage._closed)
    go_on.set()
    closing.join(30)
    assert seen == [0, 1]


def test_what_is_done_every_so_often_waits_for_its_time() -> None:
    assert every(5.0)(100.0, 101.0, 1) == 105.0


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.0), (0.002, 0.004), (0.01, 0.02), (5.0, 0.02)])
def test_the_pause_after_a_small_batch_is_by_what_it_took(took: float, pause: float) -> None:
    ended = 100.0 + took
    assert rest(2.0)(100.0, ended, LARGE - 1) == pytest.approx(ended + pause)


def test_a_large_batch_is_worth_its_transaction() -> None:
    assert rest(2.0)(100.0, 101.0, LARGE) == 101.0


def test_what_is_urgent_ends_the_wait_of_what_is_not() -> None:
    batches: list[list[int]] = []
    done = threading.Event()

    def handle(batch: list[int]) -> None:
        batches.append(batch)
        if batch[-1] == 99:
            done.set()

    # One small batch an hour: without the urgent item the test would not end.
    stage: Stage[int] = Stage("paced", handle, pace=every(3600))
    stage.put(0, urgent=True)
    for number in range(1, 50):
        stage.put(number)
    stage.put(99, urgent=True)
    assert done.wait(30)
    stage.close()
    assert [one for batch in batches for one in batch] == [*range(50), 99]
