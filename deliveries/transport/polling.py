"""Waiting for sockets, of requests and of idle connections: epoll, or poll(2) without it."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Protocol

from deliveries.transport.libcurl import pycurl

# The same numbers for poll and epoll.
READ = select.POLLIN
WRITE = select.POLLOUT

_INTERESTS = {pycurl.POLL_IN: READ, pycurl.POLL_OUT: WRITE, pycurl.POLL_INOUT: READ | WRITE}


class Poller(Protocol):
    """What is needed of `select.epoll`. Timeouts are in seconds; None is for ever."""

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


class Sockets:
    """libcurl's sockets in the poller.

    A socket stays in it while its connection is idle. What comes then was not asked for: the end
    of the connection, or an answer to a request that was not sent yet. libcurl itself looks for
    that only on connections that have been idle for a second, and would take such an answer for
    the next request's. So the connection is ended; libcurl finds it dead and tries another.

    Staying in the poller also saves two system calls a request.
    """

    def __init__(self, poller: Poller) -> None:
        self._poller = poller
        # Of each socket in the poller, what it is watched for.
        self._watched: dict[int, int] = {}
        # Those that libcurl is at work with.
        self.active: set[int] = set()
        # The sockets of connections by more than their number: libcurl closes idle ones without a
        # word, and the number may then be somebody else's.
        self._identities: dict[int, tuple[int, int]] = {}

    def opened(self, fd: int, purpose: int) -> int:
        """libcurl is about to connect this socket (`CURLOPT_SOCKOPTFUNCTION`)."""
        # pycurl duplicates the socket that it is given, and the copy would survive exec().
        os.set_inheritable(fd, False)
        self._identities[fd] = _identity(fd)
        self.active.discard(fd)
        self._watched.pop(fd, None)
        return int(pycurl.SOCKOPT_OK)

    def changed(self, event: int, fd: int, multi: object, data: object) -> None:
        """libcurl wants this socket watched, or no longer (`CURLMOPT_SOCKETFUNCTION`)."""
        if event == pycurl.POLL_REMOVE:
            self.active.discard(fd)
            if fd in self._identities:
                self._watch(fd, READ)
            else:
                self._forget(fd)
        else:
            self.active.add(fd)
            self._watch(fd, _INTERESTS[event])

    def _watch(self, fd: int, interest: int) -> None:
        watched = self._watched.get(fd)
        if watched != interest:
            if watched is None:
                self._poller.register(fd, interest)
            else:
                self._poller.modify(fd, interest)
            self._watched[fd] = interest

    def _forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            # An error: the socket has been closed, and so has left epoll by itself.
            with contextlib.suppress(OSError):
                self._poller.unregister(fd)

    def end_idle(self, fd: int) -> None:
        """Something came on a socket that libcurl is not at work with: end its connection."""
        self._forget(fd)
        try:
            if _identity(fd) != self._identities.get(fd):
                return
            connection = socket.socket(fileno=fd)
        except OSError:
            return
        try:
            connection.shutdown(socket.SHUT_RDWR)
            # What has come already could still be read after that.
            while connection.recv(65536, socket.MSG_DONTWAIT):
                pass
        except OSError:
            pass  # it has been reset, or there is nothing more to read
        finally:
            connection.detach()


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
