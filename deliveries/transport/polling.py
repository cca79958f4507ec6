"""Waiting for sockets, of requests and of idle connections: epoll, or poll(2) without it."""

from __future__ import annotations

import os
import select
import socket
from typing import Protocol

from deliveries.transport.libcurl import pycurl
from deliveries.transport.names import Pin

# The same numbers for poll and epoll.
READ = select.POLLIN
WRITE = select.POLLOUT

MAX_ENDED = 2

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
        self._connections: dict[int, Connection] = {}

    def opened(self, fd: int, pin: Pin) -> None:
        """libcurl is about to connect this socket to one of the addresses of `pin`."""
        self._connections[fd] = Connection(fd, pin)
        self.active.discard(fd)
        self._watched.pop(fd, None)

    def changed(self, event: int, fd: int, multi: object, data: object) -> None:
        """libcurl wants this socket watched, or no longer (`CURLMOPT_SOCKETFUNCTION`)."""
        if event == pycurl.POLL_REMOVE:
            self.active.discard(fd)
            if fd in self._connections:
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
            self._poller.unregister(fd)

    def end_idle(self, fd: int) -> None:
        """Something came on a socket that libcurl is not at work with."""
        self._forget(fd)
        connection = self._connections.pop(fd, None)
        if connection is not None and connection.is_open():
            connection.end()


class Connection:
    """A socket of libcurl's, known by more than its number.

    libcurl closes idle ones without a word, and the number may then be somebody else's.
    """

    __slots__ = ("_fd", "_identity", "_pin")

    def __init__(self, fd: int, pin: Pin) -> None:
        self._fd = fd
        self._pin = pin
        self._identity = _identity(fd)

    def is_open(self) -> bool:
        try:
            return _identity(self._fd) == self._identity
        except OSError:
            return False

    def end(self) -> None:
        """Make the connection useless; libcurl still has to find out and to close it."""
        shut = socket.socket(fileno=self._fd)
        try:
            shut.shutdown(socket.SHUT_RDWR)
            # What has come already could still be read after that.
            while shut.recv(65536, socket.MSG_DONTWAIT):
                pass
        except OSError:
            pass  # it has been reset, or there is nothing more to read
        finally:
            shut.detach()
        self._pin.ended.append(self)


def has_many_ended(pin: Pin) -> bool:
    """Whether a request could meet with so many ended connections that libcurl gives it up.

    It does so after five; and it looks for dead ones among all that are idle once a second.
    """
    while pin.ended and not pin.ended[-1].is_open():
        pin.ended.pop()
    return len(pin.ended) > MAX_ENDED


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
