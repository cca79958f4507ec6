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

from deliveries.http1 import Answer, Connection

HOST = "127.0.0.1"
STATE_TIMEOUT = 10.0


@dataclass(slots=True, eq=False)
class Request:
    """One request. Times are by `time.monotonic()`; `answered_at` is 0 until it is answered.

    `beside`: how many requests of its lane were unanswered when it came, itself among them.
    """

    at: float
    lane: str
    id: str
    digest: bytes
    status: int = 0
    answered_at: float = 0.0
    beside: int = 1


Respond = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Door:
    """An address at which nobody answers yet."""

    listener: socket.socket
    url: str


class Site:
    """One address. `respond` decides each answer and may be changed while it runs."""

    def __init__(self, receivers: Receivers, respond: Respond, listener: socket.socket) -> None:
        self._receivers = receivers
        self.respond = respond
        self.listener = listener
        self.port: int = listener.getsockname()[1]
        self.url = f"http://{listener.getsockname()[0]}:{self.port}/"
        self.waiting: list[_Connection] = []
        self.in_flight: Counter[str] = Counter()
        self.most_in_flight: Counter[str] = Counter()

    def let_go(self, count: int, status: int) -> None:
        """Answer the first `count` requests that were never to be answered."""
        going, self.waiting = self.waiting[:count], self.waiting[count:]
        assert len(going) == count, f"{len(going)} requests wait for an answer, not {count}"
        for connection in going:
            self._receivers.soon(connection.answer_now, Answer(status))

    def took(self, request: Request, connection: _Connection) -> Answer:
        self.in_flight[request.lane] += 1
        self.most_in_flight[request.lane] = max(
            self.most_in_flight[request.lane], self.in_flight[request.lane]
        )
        request.beside = self.in_flight[request.lane]
        answer = self.respond(request)
        if answer.delay == math.inf:
            self.waiting.append(connection)
        self._receivers.log(request)
        return answer

    def answered(self, request: Request, status: int) -> None:
        self.in_flight[request.lane] -= 1
        request.status = status
        request.answered_at = time.monotonic()


class _Visit:
    """The owner of one connection: its requests come one after the other."""

    _connection: _Connection

    def __init__(self, site: Site) -> None:
        self.site = site
        self._request: Request | None = None

    def connected(self, connection: Connection) -> None:
        assert isinstance(connection, _Connection)
        self._connection = connection
        self.site._receivers.open.add(connection)

    def disconnected(self, connection: Connection) -> None:
        assert isinstance(connection, _Connection)
        self.site._receivers.open.discard(connection)
        if self._request is not None:  # the sender hung up first
            self.site.in_flight[self._request.lane] -= 1
            self._request = None

    def take(self, headers: dict[str, str], body: bytes) -> Answer:
        lower = {name.lower(): value for name, value in headers.items()}
        self._request = Request(
            at=time.monotonic(),
            lane=lower.get("x-lane", ""),
            id=lower.get("webhook-id", ""),
            digest=hashlib.blake2b(body, digest_size=16).digest(),
        )
        return self.site.took(self._request, self._connection)

    def wrote(self, status: int) -> None:
        if self._request is not None:
            self.site.answered(self._request, status)
            self._request = None


class _Connection(Connection):
    """Notes the moment of the answer, which with a delay is later than that of its decision."""

    def __init__(self, visit: _Visit) -> None:
        super().__init__(visit)
        self._visit = visit

    def belongs_to(self, site: Site) -> bool:
        return self._visit.site is site

    def answer_now(self, answer: Answer) -> None:
        self._answer_late(answer, keep_alive=True)

    def _write(self, answer: Answer, keep_alive: bool) -> None:
        self._visit.wrote(answer.status)
        super()._write(answer, keep_alive)


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
        self.open: set[_Connection] = set()
        self._came = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="receivers", daemon=True)
        self._listeners: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._serving: dict[Site, asyncio.Server] = {}

    def __enter__(self) -> Receivers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STATE_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STATE_TIMEOUT)
        for listener in self._listeners:
            listener.close()

    def site(self, respond: Respond | None = None, listener: socket.socket | None = None) -> Site:
        """An address that answers; 200 to everything unless `respond` says otherwise."""
        if listener is None:
            listener = self._bind()
        site = Site(self, respond or (lambda _: Answer()), listener)
        asyncio.run_coroutine_threadsafe(self._serve(site), self._loop).result(STATE_TIMEOUT)
        return site

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Door]:
        """An address that does not answer to connections, until the block is over.

        Its backlog is full, so the kernel drops whatever else comes; `serve` opens it later.
        """
        listener = self._bind()
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
        """Answer at an address that was `unreachable`, or `cut`."""
        return self.site(listener=door.listener)

    def cut(self, site: Site) -> Door:
        """Nobody listens there any more: connections end, new ones are refused, until `serve`."""
        asyncio.run_coroutine_threadsafe(self._stop(site), self._loop).result(STATE_TIMEOUT)
        # Bound and not listening: refused, and nobody else gets the port.
        return Door(self._bind(site.port), site.url)

    def silent(self, backlog: int = 4096) -> str:
        """The URL of a black hole: the kernel completes connections, nobody ever takes them."""
        listener = self._bind()
        listener.listen(backlog)
        host, port = listener.getsockname()
        return f"http://{host}:{port}/"

    def dripping(self) -> str:
        """The URL of a receiver that says "200", and from then on one byte a second."""
        listener = self._bind()
        serving = self._loop.create_server(lambda: _Drip(), sock=listener, backlog=4096)
        self._servers.append(
            asyncio.run_coroutine_threadsafe(serving, self._loop).result(STATE_TIMEOUT)
        )
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

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call that on the receivers' thread."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _bind(self, port: int = 0) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        self._listeners.append(listener)
        return listener

    async def _serve(self, site: Site) -> None:
        server = await self._loop.create_server(
            lambda: _Connection(_Visit(site)), sock=site.listener, backlog=4096
        )
        self._servers.append(server)
        self._serving[site] = server

    async def _stop(self, site: Site) -> None:
        self._serving.pop(site).close()
        for connection in list(self.open):
            if connection.belongs_to(site):
                connection.abort()

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for connection in list(self.open):
            connection.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


def always(status: int, delay: float = 0.0) -> Respond:
    return lambda _: Answer(status, delay=delay)


def never(_: Request) -> Answer:
    """Take the request and stay silent."""
    return Answer(delay=math.inf)


def in_turn(statuses: Sequence[int]) -> Respond:
    """These statuses, again and again."""
    following = itertools.cycle(statuses)
    return lambda _: Answer(next(following))
