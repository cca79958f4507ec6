"""Stages: who shares a batch, and what is put for later."""

from __future__ import annotations

import threading
import time

from deliveries.stage import Stage


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
