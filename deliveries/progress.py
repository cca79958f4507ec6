"""How much of a process's work is under way."""

from __future__ import annotations

import threading


class Progress:
    """Counts what has begun and not ended. Thread-safe."""

    def __init__(self) -> None:
        self._open = 0
        self._changed = threading.Condition(threading.Lock())

    def begin(self) -> None:
        with self._changed:
            self._open += 1

    def end(self) -> None:
        with self._changed:
            self._open -= 1
            if self._open == 0:
                self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is under way; whether that was in time. `timeout` is in seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._open == 0, timeout)
