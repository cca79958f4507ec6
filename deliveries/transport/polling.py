"""Waiting for sockets: epoll, or poll(2) where there is no epoll."""

from __future__ import annotations

import select
from typing import Protocol

# The same numbers for poll and epoll.
READ = select.POLLIN
WRITE = select.POLLOUT


class Poller(Protocol):
    """What the driver needs of `select.epoll`. Timeouts are in seconds; None is for ever."""

    def register(self, fd: int, eventmask: int) -> None: ...

    def modify(self, fd: int, eventmask: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout: float | None) -> list[tuple[int, int]]: ...

    def close(self) -> None: ...


class Poll:
    """`select.poll` in the manner of `select.epoll`, for systems without the latter.

    `selectors` would do on every system, but costs 8 µs of 55 a request.
    """

    def __init__(self) -> None:
        self._poll = select.poll()
        self.register = self._poll.register
        self.modify = self._poll.modify
        self.unregister = self._poll.unregister

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        # Rounded up: a wait that ends just before its time would be repeated at once.
        return self._poll.poll(None if timeout is None else int(timeout * 1000) + 1)

    def close(self) -> None:
        """Nothing to close: there is no descriptor behind poll(2)."""


def new_poller() -> Poller:
    return select.epoll() if hasattr(select, "epoll") else Poll()
