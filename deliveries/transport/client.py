"""The transport as the rest of the project sees it."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import queue
import resource
import socket
import threading
import weakref
from collections.abc import Callable, Sequence

import certifi
import requests

from deliveries.transport.driver import Driver, Plan
from deliveries.transport.errors import TransportClosed
from deliveries.transport.exchange import Exchange
from deliveries.transport.handle import Limits, OpenSocket
from deliveries.transport.jobs import Job
from deliveries.transport.names import Resolver
from deliveries.transport.text import KEPT_BYTES
from subscriptions.conf import Network, conf

# A pin's entry in libcurl's DNS cache must outlive the request that uses it.
MAX_TIMEOUT = 600.0

# Of one process: enough that some hundreds of receivers which never answer leave room for the
# others. Twice as many files, for connections that are kept open and for all else.
MAX_IN_FLIGHT = 4000
MAX_FILES = 2 * MAX_IN_FLIGHT + 1000

logger = logging.getLogger(__name__)

_all: weakref.WeakSet[Transport] = weakref.WeakSet()


class Transport:
    """Sends requests, many at once, from any thread. One per process is enough.

    It starts its thread with the first request, and another in a forked child. Times are in
    seconds, sizes in bytes. `timeout` is the total for a request: DNS, connection, TLS, headers
    and body. `allowed_networks` are let through by the destination guard. `ca_file` (PEM)
    defaults to the bundle of certifi. `dns_cache` is how long an address is used before its name
    is looked up again, `dns_stale` how long after that it is used while there is no answer.
    `max_in_flight_total` requests are under way at once, further ones wait their turn, and those
    that begin are of each owner by turns, see `submit`; a quarter
    of these places is for requests that are submitted as `recovering`, the others are not for
    them, so that failing receivers cannot hold up healthy ones. `max_connections` are kept open,
    idle ones included. Both are held to half of the process's limit on open files. An answer's
    body is read up to `max_response_bytes`, then the connection is dropped and the answer stands;
    its first `keep_response_bytes` are kept. `resolver` has the signature of `socket.getaddrinfo`,
    `open_socket` that of `socket.socket`; it is called only for an address that may be dialled.
    """

    def __init__(
        self,
        *,
        timeout: float,
        allowed_networks: Sequence[Network],
        ca_file: str = "",
        dns_cache: float = 30.0,
        dns_stale: float = 300.0,
        max_connections: int = 1000,
        max_in_flight_total: int = 1000,
        resolver: Resolver = socket.getaddrinfo,
        open_socket: OpenSocket = socket.socket,
        max_response_bytes: int = 65536,
        # One more, for the text to end between two characters.
        keep_response_bytes: int = KEPT_BYTES + 1,
    ) -> None:
        self._timeout = _checked_timeout(timeout)
        self._plan = Plan(
            limits=Limits(
                ca_file=ca_file or certifi.where(),
                allowed=tuple(allowed_networks),
                max_response_bytes=max_response_bytes,
                keep_response_bytes=keep_response_bytes,
                open_socket=open_socket,
            ),
            resolver=resolver,
            dns_cache=dns_cache,
            dns_stale=dns_stale,
            max_in_flight=_within_file_limit(max_in_flight_total, "max_in_flight_total"),
            max_connections=_within_file_limit(max_connections, "max_connections"),
        )
        self._lock = threading.Lock()
        self._driver: Driver | None = None
        self._closed = False
        _all.add(self)

    def submit(
        self,
        request: requests.PreparedRequest,
        on_done: Callable[[Exchange], None],
        *,
        timeout: float | None = None,
        start_by: float | None = None,
        recovering: bool = False,
        owner: str = "",
    ) -> None:
        """Send `request`; `on_done(exchange)` is called exactly once, whatever happens.

        While all places are taken, the request waits; `timeout` runs from its start. One that
        has not been started by `start_by` (of `time.monotonic()`) is not sent at all: its error
        is `NotStarted`. `recovering` requests have places of their own, see `Transport`.
        Connections are kept for requests of the same `owner` alone; of requests that wait to be
        started, each owner's first comes before anybody's second.

        It is called on the transport's own thread, which drives every other request: it must be
        quick, must not block, and may submit. An exception in it is logged and goes no further.
        Raises `TransportClosed` after `close()`; `TypeError` for a body that is not bytes and
        `ValueError` for a timeout outside 0 … 600 s. All else comes as `exchange.error`.

        The request is sent at most once, except that it is sent again on another connection if a
        pooled one turns out to have been closed before a byte of the answer came. Headers
        are sent as given; `Content-Length` is made here, and `Accept-Encoding`, `Expect` and
        `Transfer-Encoding` are left out.
        """
        _check_body(request)
        if timeout is None:
            timeout = self._timeout
        else:
            _checked_timeout(timeout)
        job = Job(request, on_done, timeout, start_by, owner)
        driver = self._driver
        while driver is None or not driver.submit(job, recovering):
            driver = self._running_driver(driver)

    def capacity(self, recovering: bool) -> int:
        """How many more requests of that kind can be started now; less than 0 if some wait."""
        driver = self._driver
        return (self._plan.places(recovering)) if driver is None else driver.capacity(recovering)

    def is_crowded(self, recovering: bool) -> bool:
        """Whether more than half of the places for requests of that kind are taken."""
        return 2 * self.capacity(recovering) < self._plan.places(recovering)

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call `function` on the transport's own thread, soon, in the order given.

        From any thread. It must be quick and must not block; an exception in it is logged.
        Raises `TransportClosed` after `close()`.
        """
        driver = self._driver
        while driver is None or not driver.call_soon(function):
            driver = self._running_driver(driver)

    def send(
        self, request: requests.PreparedRequest, *, timeout: float | None = None
    ) -> requests.Response:
        """Send one request and wait. Raises what `requests` raises, and as `submit` does."""
        (answer,) = self.send_many([request], timeout=timeout)
        if isinstance(answer, requests.RequestException):
            raise answer
        return answer

    def send_many(
        self, requests_: Sequence[requests.PreparedRequest], *, timeout: float | None = None
    ) -> list[requests.Response | requests.RequestException]:
        """Send all at the same time, and wait. Answers are in the order asked.

        Raises as `submit` does, and `RuntimeError` on the transport's own thread, where it would
        wait for itself.
        """
        driver = self._driver
        if driver is not None and driver.thread is threading.current_thread():
            raise RuntimeError("waiting on the transport's own thread would last for ever")
        ended: queue.SimpleQueue[tuple[int, Exchange]] = queue.SimpleQueue()
        for number, request in enumerate(requests_):
            self.submit(request, lambda it, n=number: ended.put((n, it)), timeout=timeout)  # type: ignore[misc]
        exchanges = dict(ended.get() for _ in requests_)
        return [exchanges[number].answer() for number in range(len(requests_))]

    def close(self, timeout: float) -> None:
        """Take no more requests; give those under way `timeout` seconds, then fail them.

        They fail with `TransportClosed`. Returns when the thread has ended. Idempotent.
        """
        with self._lock:
            self._closed = True
            driver, self._driver = self._driver, None
        if driver is not None:
            driver.stop(timeout)

    def _running_driver(self, ended: Driver | None) -> Driver:
        """The driver; a new one if there is none, or if `ended` is what there is."""
        with self._lock:
            if self._closed:
                raise TransportClosed("not sent: the process is shutting down")
            if self._driver is None or self._driver is ended:
                self._driver = Driver(self._plan, ended)
                atexit.unregister(_close_all)
                atexit.register(_close_all)
            return self._driver

    def _forget_parent(self) -> None:
        """In a forked child: leave the parent's connections alone.

        Its driver must never be cleaned up here, not even when the interpreter ends: closing its
        TLS connections would say good-bye on sockets that the parent still uses.
        """
        self._lock = threading.Lock()
        if self._driver is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._driver))
            self._driver = None


def _checked_timeout(timeout: float) -> float:
    if not 0 < timeout <= MAX_TIMEOUT:
        raise ValueError(f"the timeout is {timeout!r} s; it must be from 0 to {MAX_TIMEOUT:g} s")
    return timeout


def _check_body(request: requests.PreparedRequest) -> None:
    if request.body is not None and not isinstance(request.body, bytes):
        raise TypeError(f"the body of a request must be bytes, not {type(request.body).__name__}")


def _within_file_limit(wanted: int, name: str) -> int:
    if wanted < 1:
        raise ValueError(f"{name} is {wanted}; it must be at least 1")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or wanted <= soft // 2:
        return wanted
    logger.info("%s is %d, not %d: this process may open %d files", name, soft // 2, wanted, soft)
    return max(1, soft // 2)


_of_process: Transport | None = None
_of_process_lock = threading.Lock()


def transport() -> Transport:
    """The process's one transport, made from the settings when it is first asked for."""
    global _of_process
    with _of_process_lock:
        if _of_process is None:
            settings = conf()
            _raise_file_limit()
            _of_process = Transport(
                timeout=settings.request_timeout,
                allowed_networks=settings.allowed_networks,
                ca_file=settings.ca_file,
                dns_cache=settings.dns_cache,
                max_connections=MAX_IN_FLIGHT,
                max_in_flight_total=MAX_IN_FLIGHT,
            )
        return _of_process


def _raise_file_limit() -> None:
    """Allow as many open files as this process may have: each request in flight is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _close_all() -> None:
    for transport_ in list(_all):
        transport_.close(0)


def _after_fork_in_child() -> None:
    global _of_process_lock
    _of_process_lock = threading.Lock()
    for transport_ in list(_all):
        transport_._forget_parent()


os.register_at_fork(after_in_child=_after_fork_in_child)
