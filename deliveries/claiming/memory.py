"""The event bodies that one process holds, bounded in bytes."""

from __future__ import annotations

import threading

from deliveries.values import Payload

# What the first claim of a process expects of a body, in bytes.
TYPICAL_BODY = 1024.0


class BodyMemory:
    """Counts the bodies that claims have read and whose requests have not ended. Thread-safe.

    A claim reads at most `room()` bytes, and always one body. So a process holds at most `limit`
    bytes, and one body more for each of its queues.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._typical = TYPICAL_BODY
        self._freed = threading.Condition()

    @property
    def of_a_lane(self) -> int:
        """How many bytes one lane may hold, beyond its first body: one that falls silent must
        leave room for others."""
        return self.limit // 16

    def room(self) -> int:
        return self.limit - self.held

    def rows(self, limit: int) -> int:
        """How many deliveries a claim may take, so that most of their bodies fit."""
        return max(1, min(limit, int(self.room() / self._typical)))

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until something may be read; whether it may. `timeout` is in seconds."""
        with self._freed:
            return self._freed.wait_for(lambda: self.held < self.limit, timeout)

    def hold(self, payloads: list[Payload]) -> None:
        """These were read; each ends with as many calls of `release` as it has `users`."""
        if not payloads:
            return
        size = sum(len(payload.body) for payload in payloads)
        with self._freed:
            self.held += size
            self._typical += (size / len(payloads) - self._typical) / 4

    def release(self, payload: Payload) -> None:
        """One delivery needs its body no longer."""
        with self._freed:
            payload.users -= 1
            if payload.users == 0:
                self.held -= len(payload.body)
                self._freed.notify()
