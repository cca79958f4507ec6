"""Host names: looked up by threads of our own, judged by the guard, remembered for a while."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import math
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import requests

from deliveries.transport.errors import (
    DestinationBlocked,
    HostNotFound,
    LocalFault,
    ResolverUnavailable,
)
from subscriptions.conf import Network
from subscriptions.destinations import DestinationRefused, check_addresses

# A lookup that took longer than this, or that failed by our own fault, is made in the slow lane
# the next time, so that names whose servers are dead cannot occupy all the threads.
SLOW_LOOKUP = 1.0
FAILURE_CACHE = 1.0
THREADS_PER_LANE = 8
MOST_NAMES = 10_000

logger = logging.getLogger(__name__)

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
Found = tuple[str, ...] | requests.RequestException

# What getaddrinfo(3) says when the name servers did answer, and the answer is "no".
_NO_SUCH_HOST = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)

# What it says when they did not, or could not. The rest is this machine's own (memory, files).
_NO_ANSWER = frozenset({socket.EAI_AGAIN, socket.EAI_FAIL})

_pin_numbers = itertools.count(1)


class Pin:
    """The addresses that a request may dial, in the form that libcurl understands.

    The connection is made to a name of our own (`CURLOPT_CONNECT_TO`), which belongs to this
    host and this set of addresses for ever (`CURLOPT_RESOLVE`). libcurl finds pooled connections
    by that name, so a connection to an address that is no longer the host's is never reused,
    and libcurl never asks a name server.
    """

    __slots__ = ("addresses", "connect_to", "resolve")

    def __init__(self, port: int, addresses: Sequence[str], *, literal: bool = False) -> None:
        self.addresses = frozenset(map(ipaddress.ip_address, addresses))
        spelled = [f"[{a}]" if ":" in a else a for a in addresses]
        name = spelled[0] if literal else f"pin-{next(_pin_numbers)}.invalid"
        self.connect_to = [f"::{name}:"]
        # "+": the entry expires, so that names of pins that nobody uses are forgotten.
        self.resolve = [] if literal else [f"+{name}:{port}:{','.join(spelled)}"]


class Name:
    """What is known of one host name. Touched by the driving thread only, but for `begun`."""

    __slots__ = (
        "begun",
        "expires",
        "failing_since",
        "found",
        "pins",
        "slow",
        "under_way",
        "waiting",
    )

    def __init__(self) -> None:
        self.found: Found | None = None
        self.expires = 0.0
        self.under_way = False
        self.begun: float | None = None
        self.failing_since: float | None = None
        self.slow = False
        self.waiting: dict[Any, None] = {}
        self.pins: dict[int, Pin] = {}

    def pin(self, port: int) -> Pin:
        pin = self.pins.get(port)
        if pin is None:
            assert isinstance(self.found, tuple)
            pin = self.pins[port] = Pin(port, self.found)
        return pin

    def learn(self, found: Found, now: float, cache: float) -> None:
        failed = isinstance(found, requests.RequestException)
        known = frozenset(self.found) if isinstance(self.found, tuple) else None
        if failed or known != frozenset(found if isinstance(found, tuple) else ()):
            self.pins = {}
            self.found = found
        self.expires = now + (min(cache, FAILURE_CACHE) if failed else cache)
        self.under_way = False
        self.begun = None


class NameBook:
    """All names. `on_found(host, found, seconds)` is called on a thread of the book's own."""

    def __init__(
        self,
        resolver: Resolver,
        allowed: Sequence[Network],
        cache: float,
        on_found: Callable[[str, Found, float], None],
    ) -> None:
        self._resolver = resolver
        self._allowed = allowed
        self._cache = cache
        self._on_found = on_found
        self._names: dict[str, Name] = {}
        self._last_answer = -math.inf
        self._lane = Lane(THREADS_PER_LANE, self._look_up)
        self._slow_lane = Lane(THREADS_PER_LANE, self._look_up)

    def get(self, host: str, now: float) -> Name:
        """The name; if nothing fresh is known of it, a lookup is under way."""
        name = self._names.get(host)
        if name is None:
            if len(self._names) >= MOST_NAMES:
                self._forget(now)
            name = self._names[host] = Name()
        if not name.under_way and now >= name.expires:
            name.under_way = True
            (self._slow_lane if name.slow else self._lane).put(host)
        return name

    def learn(self, host: str, found: Found, took: float, now: float) -> Name:
        name = self._names[host]
        name.slow = took > SLOW_LOOKUP or isinstance(found, ResolverUnavailable)
        if isinstance(found, ResolverUnavailable):
            found = self._blame(host, name, found, now - took)
        else:
            name.failing_since = None
            if not isinstance(found, LocalFault):
                self._last_answer = now
        name.learn(found, now, self._cache)
        return name

    def unanswered(self, host: str, fault: ResolverUnavailable) -> requests.ConnectionError:
        """The error of a request whose time ran out before `host` was looked up."""
        name = self._names[host]
        return fault if name.begun is None else self._blame(host, name, fault, name.begun)

    def _blame(
        self, host: str, name: Name, fault: ResolverUnavailable, since: float
    ) -> requests.ConnectionError:
        """Whose fault is it that `host` was not answered for?

        Ours, unless the name servers have answered for another host since this one began to fail.
        Otherwise a host whose own zone is dead would be excused for ever.
        """
        if name.failing_since is None:
            name.failing_since = since
        if self._last_answer > name.failing_since:
            return HostNotFound(f"the name servers answer, but not for {host}")
        return fault

    def leave(self, host: str, waiter: object) -> None:
        """`waiter` waits no longer. A lookup may last much longer than a request."""
        self._names[host].waiting.pop(waiter, None)

    def stop(self) -> None:
        self._lane.stop()
        self._slow_lane.stop()

    def _forget(self, now: float) -> None:
        self._names = {h: n for h, n in self._names.items() if n.under_way or now < n.expires}

    def _look_up(self, host: str) -> None:
        began = time.monotonic()
        self._names[host].begun = began
        found = judged(host, look_up(self._resolver, host), self._allowed)
        self._on_found(host, found, time.monotonic() - began)


class Lane:
    """At most `threads` daemon threads, started as they are needed, that look names up."""

    def __init__(self, threads: int, work: Callable[[str], None]) -> None:
        self._threads = threads
        self._work = work
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._started = 0
        self._idle = 0
        self._lock = threading.Lock()

    def put(self, host: str) -> None:
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._started < self._threads:
                # No more threads to be had: those that are there take it, or its requests end
                # at their deadline.
                with contextlib.suppress(RuntimeError):
                    threading.Thread(target=self._run, name="webhook-dns", daemon=True).start()
                    self._started += 1
        self._queue.put(host)

    def stop(self) -> None:
        for _ in range(self._threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (host := self._queue.get()) is not None:
            self._work(host)
            with self._lock:
                if self._queue.empty():
                    self._idle += 1


def look_up(resolver: Resolver, host: str) -> Found:
    """The addresses of `host`, in the resolver's order, or why there are none."""
    try:
        rows = resolver(host, None, type=socket.SOCK_STREAM)
        addresses = tuple(dict.fromkeys(str(row[4][0]) for row in rows))
    except socket.gaierror as error:
        if error.errno in _NO_SUCH_HOST:
            return HostNotFound(f"there is no host named {host}")
        if error.errno in _NO_ANSWER:
            return ResolverUnavailable(f"the name servers did not answer for {host}")
        return LocalFault(f"{host} could not be looked up ({error.strerror})")
    except UnicodeError:
        return HostNotFound(f"there is no host named {host}")
    except OSError as error:
        return LocalFault(f"{host} could not be looked up ({error.strerror})")
    except Exception as error:
        logger.exception("the resolver failed on %s", host)
        return LocalFault(f"{host} could not be looked up ({type(error).__name__})")
    return addresses or HostNotFound(f"{host} has no address")


def judged(host: str, found: Found, allowed: Sequence[Network]) -> Found:
    """What was found, or `DestinationBlocked` if one of the addresses may not be dialled."""
    if isinstance(found, requests.RequestException):
        return found
    try:
        check_addresses(host, found, allowed)
    except DestinationRefused as error:
        return DestinationBlocked(str(error))
    except ValueError as error:
        return LocalFault(f"the resolver's answer for {host} is no address ({error})")
    return found
