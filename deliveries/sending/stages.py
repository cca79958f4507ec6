"""A stage: a thread that takes whatever has gathered, at once when it is idle.

A lone item waits for nothing; a crowd shares the bill of one batch. A batch costs a transaction,
however small it is: where many come one after the other, each waits a few milliseconds for more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from subscriptions.database import give_back_connection, own_connection

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


_here = threading.local()


def in_a_stage() -> bool:
    """Whether the caller is the thread of a stage, which must not wait for its own work."""
    return getattr(_here, "stage", False)


# A batch of at least so many items is worth its transaction.
LARGE = 5


class Pace:
    """Small batches, `per_second` of them in the long run and `burst` of them at once.

    Urgent ones are counted and do not wait; whoever comes after them waits for one interval.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval = 1 / per_second
        self._burst = burst * self._interval
        self._full_at = 0.0

    def wait(self, now: float) -> float:
        """Seconds until the next batch may begin."""
        return max(0.0, self._full_at - self._burst - now)

    def count(self, now: float, size: int) -> None:
        """A batch of `size` items began."""
        if size < LARGE:
            most = now + self._burst + self._interval
            self._full_at = min(most, max(self._full_at, now) + self._interval)


class Stage(Generic[Item]):
    """Runs `handle` with batches of at most `most` items, one batch at a time, at this pace.

    `own_connection`: whether its thread uses the database for claims and settlements, and what
    follows from them, alone.

    `handle` must not raise; what it raises all the same is logged, and the stage goes on.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[Item]], None],
        *,
        most: int = 2000,
        pace: Pace | None = None,
        own_connection: bool = False,
    ) -> None:
        self._name = name
        self._handle = handle
        self._most = most
        self._pace = pace
        self._own_connection = own_connection
        self._hurry = threading.Event()
        # None ends the thread.
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, item: Item, *, urgent: bool = False) -> None:
        """Hand over an item. Never waits; nor does an `urgent` one wait for others."""
        if self._thread is None:
            self._start()
        self._items.put(item)
        if urgent:
            self._hurry.set()

    def close(self) -> None:
        """Handle what was put before, then end the thread and its database connection."""
        if self._thread is not None:
            self._items.put(None)
            self._hurry.set()
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        _here.stage = True
        if self._own_connection:
            own_connection()
        while (first := self._items.get()) is not None:
            batch = [first]
            ended = False
            if self._pace is not None and (wait := self._pace.wait(time.monotonic())) > 0:
                self._hurry.wait(wait)
            # Whoever was in a hurry is in this batch.
            self._hurry.clear()
            while len(batch) < self._most and not ended:
                try:
                    item = self._items.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                else:
                    batch.append(item)
            if self._pace is not None:
                self._pace.count(time.monotonic(), len(batch))
            try:
                self._handle(batch)
            except Exception:
                logger.exception("the %s stage failed with a batch of %d", self._name, len(batch))
            if ended:
                break
        give_back_connection()
