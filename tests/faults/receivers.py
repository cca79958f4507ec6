"""Instrumented receivers: every request with its `webhook-id`, when it came, what was answered.

All sites are served by one thread. A subscription is known by its header `X-Lane`, which
`world.World.subscribe` sets to its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import math
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from webhooks_project.receiver.http import (
    BACKLOG,
    HOST,
    Address,
    Answer,
    Connection,
    Loop,
    bind,
)
from webhooks_project.receiver.http import Request as Sent


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are by `time.monotonic()`; `answered_at` is 0 until it is answered.

    `beside`: how many requests of its lane were unanswered when it came, itself among them.
    `age`: seconds since its `webhook-timestamp`, which is in whole seconds.
    """

    at: float
    lane: str
    id: str
    digest: bytes
    status: int = 0
    answered_at: float = 0.0
    beside: int = 1
    age: float = 0.0


Respond = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Door:
    """An address at which nobody answers yet."""

    listener: socket.socket
    url: str


class Site(Address):
    """One address. `respond` decides each answer and may be changed while it runs."""

    def __init__(
        self, receivers: Receivers, respond: Respond, listener: socket.socket | None
    ) -> None:
        super().__init__(listener=listener, loop=receivers.loop)
        self._receivers = receivers
        self._latest: dict[Connection, Request] = {}
        self.respond = respond
        self.waiting: list[Connection] = []
        self.in_flight: Counter[str] = Counter()

    def let_go(self, count: int, status: int) -> None:
        """Answer the first `count` requests that were never to be answered."""
        going, self.waiting = self.waiting[:count], self.waiting[count:]
        assert len(going) == count, f"{len(going)} requests wait for an answer, not {count}"
        for connection in going:
            self._receivers.loop.soon(connection.answer, Answer(status))

    def take(self, connection: Connection, request: Sent) -> Answer:
        headers = dict(request.headers)
        lane = headers.get(b"X-Lane", b"").decode()
        self.in_flight[lane] += 1
        arrived = self._latest[connection] = Request(
            at=time.monotonic(),
            lane=lane,
            id=headers.get(b"webhook-id", b"").decode(),
            digest=hashlib.blake2b(request.body, digest_size=16).digest(),
            beside=self.in_flight[lane],
            age=time.time() - int(headers.get(b"webhook-timestamp", b"0")),
        )
        answer = self.respond(arrived)
        if answer.delay == math.inf:
            self.waiting.append(connection)
        self._receivers.log(arrived)
        return answer

    def answered(self, connection: Connection, status: int) -> None:
        request = self._latest.pop(connection, None)
        if request is not None:
            self.in_flight[request.lane] -= 1
            request.status = status
            request.answered_at = time.monotonic()

    def disconnected(self, connection: Connection) -> None:
        super().disconnected(connection)
        request = self._latest.pop(connection, None)
        if request is not None:  # the sender hung up first
            self.in_flight[request.lane] -= 1


class _Drip(asyncio.Protocol):
    """Answers whatever comes with a header that never ends."""

    _transport: asyncio.Transport
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._transport.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
            self._drip()

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _drip(self) -> None:
        self._transport.write(b".")
        self._timer = asyncio.get_running_loop().call_later(1.0, self._drip)


class Receivers:
    """All sites of a test, and the log of what came to them; a context manager."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._came = threading.Condition()
        self._sites: list[Site] = []
        self._listeners: list[socket.socket] = []

    def __enter__(self) -> Receivers:
        self.loop = Loop("receivers")
        return self

    def __exit__(self, *_: object) -> None:
        for site in self._sites:
            site.close()
        self.loop.close()
        for listener in self._listeners:
            listener.close()

    def site(self, respond: Respond | None = None, listener: socket.socket | None = None) -> Site:
        """An address that answers; 200 to everything unless `respond` says otherwise."""
        site = Site(self, respond or (lambda _: Answer()), listener)
        self._sites.append(site)
        site.start()
        return site

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Door]:
        """An address that does not answer to connections, until the block is over.

        Its backlog is full, so the kernel drops whatever else comes; `serve` opens it later.
        """
        listener = bind(HOST)
        self._listeners.append(listener)
        listener.listen(0)
        host, port = listener.getsockname()
        fillers = []
        # One more than the backlog completes; from then on connecting hangs.
        while not fillers or select.select([], [fillers[-1]], [], 0.2)[1]:
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, port))
            fillers.append(filler)
        try:
            yield Door(listener, f"http://{host}:{port}/")
        finally:
            for filler in fillers:
                filler.close()

    def serve(self, door: Door) -> Site:
        """Answer at an address that was `unreachable`."""
        return self.site(listener=door.listener)

    def silent(self, backlog: int = BACKLOG) -> str:
        """The URL of a black hole: the kernel completes connections, nobody ever takes them."""
        listener = bind(HOST)
        self._listeners.append(listener)
        listener.listen(backlog)
        host, port = listener.getsockname()
        return f"http://{host}:{port}/"

    def dripping(self) -> str:
        """The URL of a receiver that says "200", and from then on one byte a second."""
        listener = bind(HOST)
        self._listeners.append(listener)
        self.loop.run(_drip_at(listener))
        return "http://{}:{}/".format(*listener.getsockname())

    def log(self, request: Request) -> None:
        with self._came:
            self.requests.append(request)
            self._came.notify_all()

    def wait_until(self, holds: Callable[[], object], timeout: float) -> bool:
        """Wait until that holds, looked at after each request; whether it did in time."""
        with self._came:
            return self._came.wait_for(lambda: bool(holds()), timeout)

    def wait_for(self, count: int, timeout: float) -> bool:
        return self.wait_until(lambda: len(self.requests) >= count, timeout)

    def arrivals(self, since: int = 0) -> Counter[tuple[str, str]]:
        """How often each (lane, event id) came, from the request number `since` on."""
        return Counter((one.lane, one.id) for one in itertools.islice(self.requests, since, None))

    def duplicates(self) -> int:
        seen = self.arrivals()
        return seen.total() - len(seen)


async def _drip_at(listener: socket.socket) -> None:
    await asyncio.get_running_loop().create_server(_Drip, sock=listener, backlog=BACKLOG)


def always(status: int, delay: float = 0.0) -> Respond:
    return lambda _: Answer(status, delay=delay)


def never(_: Request) -> Answer:
    """Take the request and stay silent."""
    return Answer(delay=math.inf)


def in_turn(statuses: Sequence[int]) -> Respond:
    """These statuses, again and again."""
    following = itertools.cycle(statuses)
    return lambda _: Answer(next(following))
