"""A stage: a thread that takes whatever has gathered, at once when it is idle.

A lone item waits for nothing; items that come together share one batch, and so one transaction.
Where many come one after the other, there are pauses in which they gather (`rest`).
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from deliveries.turns import Turns
from subscriptions.database import close_own_connection

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# How long a stage that cannot even look for items waits, in seconds.
ERROR_PAUSE = 1.0
# A batch of at least so many items is worth its transaction. With 5 instead, the worker takes 1.2
# times as long for each of the single events that 8 threads publish.
LARGE = 40
# The longest pause after a small batch, in seconds.
MAX_PAUSE = 0.02


# When the next batch may begin: of when the last one began and ended, and of its size.
Pace = Callable[[float, float, int], float]


def every(seconds: float) -> Pace:
    """One batch in so many seconds, at most."""
    return lambda began, ended, size: began + seconds


def rest(times: float) -> Pace:
    """After a small batch, a pause of `times` what it took, `MAX_PAUSE` at most.

    A batch costs a transaction, however small it is, so what comes meanwhile shares the next. The
    busier the machine, the longer a batch takes, and the more share one. With a hundred batches a
    second instead, the benchmark's *narrow* has twice the latency (p50 9 and 4 ms) and nine tenths
    of the processor time for each event; with 8 threads, which keep the machine busy, both are
    the same.
    """

    def next_at(began: float, ended: float, size: int) -> float:
        return ended if size >= LARGE else ended + min(MAX_PAUSE, times * (ended - began))

    return next_at


class Stage(Generic[Item]):
    """Runs `handle` with batches of at most `max_batch` items, one batch at a time.

    `setup` and `teardown` run in its thread, before the first and after the last batch. `handle`
    must not raise; what it raises all the same is logged, and the stage goes on. `pace`: when
    the next batch may begin.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[Item]], None],
        *,
        max_batch: int = 2000,
        pace: Pace | None = None,
        setup: Callable[[], None] | None = None,
        teardown: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._max_batch = max_batch
        self._pace = pace
        self._next_at = 0.0
        self._hurry = threading.Event()
        self._setup = setup
        self._teardown = teardown
        # None only wakes the thread.
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Item]] = []
        self._numbers = itertools.count()
        self._closed = False
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def put(self, item: Item, *, urgent: bool = False) -> None:
        """Hand over an item. Never waits; nor does an `urgent` one wait for others."""
        self._items.put(item)
        if urgent and not self._hurry.is_set():
            self._hurry.set()
        if self._thread is None:
            self._start()

    def put_later(self, item: Item, seconds: float) -> None:
        """Hand over an item that is to be handled after `seconds`."""
        with self._lock:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), item))
        self._items.put(None)
        if self._thread is None:
            self._start()

    def wake(self) -> None:
        """Have the thread look for items."""
        self._items.put(None)
        if self._thread is None:
            self._start()

    def seconds_to_next(self) -> float | None:
        """Seconds until the next item that was put for later; None if there is none."""
        with self._lock:
            return max(0.0, self._later[0][0] - time.monotonic()) if self._later else None

    def close(self) -> None:
        """Handle what was put before, then end the thread. Not to be used after."""
        self._closed = True
        self._hurry.set()
        if self._thread is not None:
            self._items.put(None)
            self._thread.join()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if self._setup is not None:
            self._setup()
        while True:
            try:
                batch = self._next_batch()
            except Exception:
                logger.exception("the %s stage could not look for items", self._name)
                time.sleep(ERROR_PAUSE)
                continue
            if not batch:
                break
            began = time.monotonic()
            try:
                self._handle(batch)
            except Exception:
                logger.exception("the %s stage failed with a batch of %d", self._name, len(batch))
            if self._pace is not None:
                self._next_at = self._pace(began, time.monotonic(), len(batch))
        if self._teardown is not None:
            self._teardown()

    def _next_batch(self) -> list[Item]:
        """At least one item; none once the stage is closed and everything is handled."""
        batch: list[Item] = []
        while not batch:
            ended = self._closed
            wait = self._next_at - time.monotonic()
            if wait > 0 and not ended:
                self._hurry.wait(wait)
            # What made it hurry has been handed over.
            self._hurry.clear()
            self._gather(batch, wait=not ended)
            if ended:
                break
        return batch

    def _gather(self, batch: list[Item], *, wait: bool) -> None:
        self._take_due(batch)
        timeout = self.seconds_to_next()
        while len(batch) < self._max_batch:
            try:
                if batch or not wait:
                    item = self._items.get_nowait()
                else:
                    item = self._items.get(timeout=timeout)
            except queue.Empty:
                return
            if item is not None:
                batch.append(item)
            elif wait and not batch:
                return

    def _take_due(self, batch: list[Item]) -> None:
        """Take what was put for later and is due."""
        now = time.monotonic()
        with self._lock:
            while self._later and (self._closed or self._later[0][0] <= now):
                batch.append(heapq.heappop(self._later)[2])


class FairStage(Stage[Item]):
    """A stage whose items have an `owner`: these take turns in each batch of `max_batch`.

    So an item waits for the batch that is under way, and for no backlog of another owner. The
    items of one owner stay in their order.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[list[Item]], None],
        *,
        owner: Callable[[Item], str],
        max_batch: int,
        pace: Pace | None = None,
        setup: Callable[[], None] | None = None,
        teardown: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name, handle, pace=pace, setup=setup, teardown=teardown)
        self._owner = owner
        self._limit = max_batch
        self._turns: Turns[Item] = Turns()

    def _gather(self, batch: list[Item], *, wait: bool) -> None:
        came: list[Item] = []
        super()._gather(came, wait=wait and not self._turns)
        for item in came:
            self._turns.put(self._owner(item), item)
        while self._turns and len(batch) < self._limit:
            batch.append(self._turns.pop())


def call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            logger.exception("a signal could not be sent")
        finally:
            # One that was lost meanwhile would be of no use to the next.
            close_own_connection()
