"""Host names: looked up by threads of our own, judged by the guard, remembered for a while."""

from __future__ import annotations

import ipaddress
import itertools
import logging
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import requests

from deliveries.transport.errors import (
    DestinationBlocked,
    HostNotFound,
    LocalFault,
    ResolverUnavailable,
)
from deliveries.transport.lookups import LookupThreads
from subscriptions.conf import Network
from subscriptions.destinations import DestinationRefused, check_addresses

# A name whose lookup took longer than this, or failed by our own fault, shares few threads with
# others like it the next time.
SLOW_LOOKUP = 1.0
FAILURE_CACHE = 1.0

# Names that are remembered: those that were used last. libcurl has room for 29,999 pins, of
# which a name has one for each port and owner.
MAX_NAMES = 20_000

# Of the addresses of a name all are judged, and so many are dialled one after the other.
MAX_ADDRESSES = 32

logger = logging.getLogger(__name__)

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
Found = tuple[str, ...] | requests.RequestException

# What getaddrinfo(3) says when the name servers did answer, and the answer is "no".
_NO_SUCH_HOST = frozenset(
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
)

# What it says when they did not, or could not. All else is this machine's own (memory, files).
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

    def __init__(self, port: int, addresses: Sequence[str]) -> None:
        self.addresses = frozenset(map(ipaddress.ip_address, addresses))
        spelled = ",".join(f"[{a}]" if ":" in a else a for a in addresses)
        name = f"pin-{next(_pin_numbers)}.invalid"
        self.connect_to = [f"::{name}:"]
        # "+": the entry expires, so that names of pins that nobody uses are forgotten.
        self.resolve = [f"+{name}:{port}:{spelled}"]


class Pins(dict[str, Pin]):
    """Pins to the same addresses, by the owner of the connections that are made with them."""

    def __init__(self, port: int, addresses: Sequence[str]) -> None:
        super().__init__()
        self._port = port
        self._addresses = addresses

    def __missing__(self, owner: str) -> Pin:
        pin = self[owner] = Pin(self._port, self._addresses)
        return pin


class Name:
    """What is known of one host name. Touched by the driving thread only, but for `begun`.

    `expires`: until then it is not looked up again; `usable_until`: until then its addresses are
    used while it is being looked up again. Both of `time.monotonic()`.
    """

    __slots__ = (
        "begun",
        "expires",
        "failing_since",
        "found",
        "host",
        "pins",
        "slow",
        "under_way",
        "usable_until",
        "waiting",
    )

    def __init__(self, host: str) -> None:
        self.host = host
        self.found: Found | None = None
        self.expires = 0.0
        self.usable_until = 0.0
        self.under_way = False
        self.begun: float | None = None
        self.failing_since: float | None = None
        self.slow = False
        self.waiting: dict[Any, None] = {}
        self.pins: dict[int, Pins] = {}

    def must_wait(self, now: float) -> bool:
        """Whether a request has to wait for the lookup that is under way."""
        return self.under_way and now >= self.usable_until

    def pin(self, port: int, owner: str) -> Pin:
        pins = self.pins.get(port)
        if pins is None:
            assert isinstance(self.found, tuple)
            pins = self.pins[port] = Pins(port, self.found)
        return pins[owner]


class NameBook:
    """The names that were used last.

    `cache`: seconds that an address is used before it is looked up again; `stale`: seconds after
    those that it is used while the new lookup is under way or gets no answer. An answer always
    counts at once, be it "no such host" or an address that is refused.
    `on_found(name, found, seconds)` is called on a thread of the book's own.
    """

    def __init__(
        self,
        resolver: Resolver,
        allowed: Sequence[Network],
        cache: float,
        stale: float,
        on_found: Callable[[Name, Found, float], None],
    ) -> None:
        self._resolver = resolver
        self._allowed = allowed
        self._cache = cache
        self._stale = stale
        self._on_found = on_found
        self._names: OrderedDict[str, Name] = OrderedDict()
        self._last_answer = -math.inf
        self._threads = LookupThreads()

    def get(self, host: str, now: float) -> Name:
        """The name; if nothing fresh is known of it, a lookup is under way."""
        name = self._names.get(host)
        if name is None:
            if len(self._names) >= MAX_NAMES:
                # If its lookup is under way, it still serves those that wait for it.
                self._names.popitem(last=False)
            name = self._names[host] = Name(host)
        else:
            self._names.move_to_end(host)
        if not name.under_way and now >= name.expires:
            name.under_way = True
            # One that had addresses does not queue with those that never had any.
            slow = name.slow and not isinstance(name.found, tuple)
            self._threads.put(host, partial(self._look_up, name), slow=slow)
        return name

    def learn(self, name: Name, found: Found, took: float, now: float) -> None:
        name.slow = took > SLOW_LOOKUP or isinstance(found, ResolverUnavailable)
        name.under_way = False
        name.begun = None
        unanswered = isinstance(found, (ResolverUnavailable, LocalFault))
        if isinstance(found, ResolverUnavailable):
            found = self._blame(name, found, now - took)
        else:
            name.failing_since = None
            if not unanswered:
                self._last_answer = now
        if isinstance(found, tuple):
            if not isinstance(name.found, tuple) or set(name.found) != set(found):
                name.pins = {}
                name.found = found
            name.expires = now + self._cache
            name.usable_until = name.expires + self._stale
            return
        name.expires = now + min(self._cache, FAILURE_CACHE)
        if unanswered and now < name.usable_until:
            return  # what is known of it is all there is
        name.pins = {}
        name.found = found
        name.usable_until = 0.0

    def unanswered(self, name: Name, fault: ResolverUnavailable) -> requests.ConnectionError:
        """The error of a request whose time ran out before `name` was looked up."""
        since = name.failing_since if name.begun is None else name.begun
        return fault if since is None else self._blame(name, fault, since)

    def _blame(
        self, name: Name, fault: ResolverUnavailable, since: float
    ) -> requests.ConnectionError:
        """Whose fault is it that `name` was not answered for?

        Ours, unless the name servers have answered for another host since this one began to fail.
        Otherwise a host whose own zone is dead would be excused for ever.
        """
        if name.failing_since is None:
            name.failing_since = since
        if self._last_answer > name.failing_since:
            return HostNotFound(f"the name servers answer, but not for {name.host}")
        return fault

    def stop(self) -> None:
        self._threads.stop()

    def _look_up(self, name: Name) -> None:
        name.begun = began = time.monotonic()
        found = judged(name.host, look_up(self._resolver, name.host), self._allowed)
        self._on_found(name, found, time.monotonic() - began)


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
    return found[:MAX_ADDRESSES]
