"""A stage: a thread that takes whatever has gathered, at once when it is idle.

A lone item waits for nothing; a crowd shares the bill of one batch.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from django.db import connection

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Stage(Generic[Item]):
    """Runs `handle` with batches of at most `most` items, one batch at a time.

    `handle` must not raise; what it raises all the same is logged, and the stage goes on.
    """

    def __init__(self, name: str, handle: Callable[[list[Item]], None], most: int = 2000) -> None:
        self._name = name
        self._handle = handle
        self._most = most
        # None ends the thread.
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def put(self, item: Item) -> None:
        """Hand over an item. Never waits."""
        if self._thread is None:
            self._start()
        self._items.put(item)

    def close(self) -> None:
        """Handle what was put before, then end the thread and its database connection."""
        if self._thread is not None:
            self._items.put(None)
            self._thread.join()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (first := self._items.get()) is not None:
            batch = [first]
            ended = False
            while len(batch) < self._most and not ended:
                try:
                    item = self._items.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    ended = True
                else:
                    batch.append(item)
            try:
                self._handle(batch)
            except Exception:
                logger.exception("the %s stage failed with a batch of %d", self._name, len(batch))
            if ended:
                break
        connection.close()
