"""Addresses on this machine that take HTTP requests by POST; llhttp (`httptools`) parses them.

Connections are kept alive; requests on one are answered in order, also those sent ahead. Bodies
are held whole in memory, without a limit.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

import httptools

HOST = "127.0.0.1"
BACKLOG = 4096
# A change of state takes milliseconds; longer means that a callback of the owner blocks.
STATE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered. `delay` is in seconds; infinity never answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass(slots=True)
class Request:
    """One request, with its headers as they were sent."""

    path: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    method: bytes
    keep_alive: bool

    def texts(self) -> dict[str, str]:
        """The headers as text, those of one name (in any case) joined by commas."""
        found: dict[str, tuple[str, list[str]]] = {}
        for sent, value in self.headers:
            name = sent.decode("latin-1")
            found.setdefault(name.lower(), (name, []))[1].append(value.decode("latin-1"))
        return {name: ", ".join(values) for name, values in found.values()}


class Loop:
    """An event loop in a daemon thread of its own, from the start until `close`."""

    def __init__(
        self,
        name: str,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, change: Coroutine[Any, Any, None]) -> None:
        """Run that on the loop, and wait for it. Not to be called on the loop's own thread."""
        if self._thread is threading.current_thread():
            change.close()
            raise RuntimeError("A receiver cannot be started or stopped from its own callbacks.")
        asyncio.run_coroutine_threadsafe(change, self._loop).result(STATE_TIMEOUT)

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call that on the loop's thread."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STATE_TIMEOUT)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
            accepting = asyncio.all_tasks(self._loop)
            for task in accepting:
                task.cancel()
            if accepting:
                self._loop.run_until_complete(asyncio.wait(accepting))
        finally:
            self._loop.close()


class Address:
    """A port of 127.0.0.1 that can answer, be silent, and refuse. What it answers, `take` says.

    `port` 0 takes any free one; `OSError` if it is taken. `listener` is a bound socket to be used
    instead. Without a `loop` that several share it has one of its own while it is open.
    """

    def __init__(
        self, *, port: int = 0, listener: socket.socket | None = None, loop: Loop | None = None
    ) -> None:
        self._socket = listener or bind(HOST, port)
        self.host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}/"
        self._loop = loop
        self._own_loop: Loop | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()
        self._silent = False

    def start(self) -> None:
        """Answer: for the first time, or again after `stop` or `pause`. Idempotent."""
        self._run(self._listen())

    def pause(self) -> None:
        """Take connections, and be silent on them until `start`. Idempotent."""
        self._run(self._listen(silent=True))

    def stop(self) -> None:
        """Break off every connection and refuse new ones, until `start`. Idempotent.

        The port is kept meanwhile: nobody else gets it.
        """
        self._run(self._hang_up())

    def close(self) -> None:
        """Stop for good, and give the port back. Idempotent."""
        if self._server is not None:
            self.stop()
        if self._own_loop is not None:
            self._own_loop.close()
            self._own_loop = self._loop = None
        self._socket.close()

    # Called on the loop's thread.

    def take(self, connection: Connection, request: Request) -> Answer | None:
        """Decide the answer; None if `connection.answer` will be called later."""
        raise NotImplementedError

    def answered(self, connection: Connection, status: int) -> None:
        """The answer to the latest request is being sent."""

    def connected(self, connection: Connection) -> None:
        if self._server is None:  # accepted just before `stop`
            connection.abort()
            return
        self._connections.add(connection)
        connection.hush(self._silent)

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def _run(self, change: Coroutine[Any, Any, None]) -> None:
        if self._socket.fileno() < 0:
            change.close()
            raise RuntimeError("This receiver is closed; make a new one.")
        if self._loop is None:
            self._loop = self._own_loop = Loop(f"receiver-{self.port}")
        self._loop.run(change)

    async def _listen(self, *, silent: bool = False) -> None:
        self._silent = silent
        for connection in self._connections:
            connection.hush(silent)
        if self._server is None:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self), sock=self._socket, backlog=BACKLOG
            )

    async def _hang_up(self) -> None:
        if self._server is not None:
            # A process that was forked meanwhile holds the listening socket too.
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._server.close()
            self._server = None
            # Bound, but not listening: connections are refused, and the port stays ours.
            self._socket.close()
            self._socket = bind(self.host, self.port)
        for connection in list(self._connections):
            connection.abort()


class Connection(asyncio.Protocol):
    """One connection. asyncio sets TCP_NODELAY on it."""

    _transport: asyncio.Transport

    def __init__(self, address: Address) -> None:
        self._address = address
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[Request] = deque()
        self._unreadable = ""
        self._current: Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._silent = False
        self._unsaid = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._address.connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._address.disconnected(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._unreadable = f"This is no HTTP request: {error}\n"
            self._transport.pause_reading()
        self._take_requests()

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._path = self._body = b""
        self._headers: list[tuple[bytes, bytes]] = []

    def on_url(self, part: bytes) -> None:
        self._path += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        for _, value in self._headers:
            if value == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body += part

    def on_message_complete(self) -> None:
        parser = self._parser
        self._requests.append(
            Request(
                self._path,
                self._headers,
                self._body,
                parser.get_method(),
                parser.should_keep_alive(),
            )
        )

    # Called by the address, and by handlers that answer later.

    def answer(self, answer: Answer) -> None:
        """Answer the latest request, and go on with those that were sent ahead."""
        if answer.delay == math.inf or self._transport.is_closing():
            return
        if answer.delay > 0:
            self._timer = asyncio.get_running_loop().call_later(
                answer.delay, self._answer_now, answer
            )
        else:
            self._answer_now(answer)

    def hush(self, silent: bool) -> None:
        """Neither read nor answer; or go on, with what was left undone."""
        self._silent = silent
        if silent:
            self._transport.pause_reading()
            return
        unsaid, self._unsaid = self._unsaid, b""
        if unsaid:
            self._transport.write(unsaid)
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        self._transport.abort()

    def _answer_now(self, answer: Answer) -> None:
        self._write(answer)
        self._take_requests()

    def _take_requests(self) -> None:
        while self._requests and self._current is None and not self._transport.is_closing():
            request = self._current = self._requests.popleft()
            if request.method != b"POST":
                request.keep_alive = False
                self._write(Answer(405, b"This receives webhooks; send them by POST.\n"))
                return
            answer = self._address.take(self, request)
            if answer is None:
                return
            if answer.delay > 0:
                self.answer(answer)
                return
            self._write(answer)
        if self._unreadable and self._current is None:
            self._send(rendered(400, self._unreadable.encode(), keep_alive=False))
            self._transport.close()

    def _write(self, answer: Answer) -> None:
        assert self._current is not None
        keep_alive, self._current = self._current.keep_alive, None
        self._address.answered(self, answer.status)
        if answer.headers:
            self._send(render(answer.status, answer.body, keep_alive, answer.headers))
        else:
            self._send(rendered(answer.status, answer.body, keep_alive))
        if not keep_alive and not self._silent:
            self._transport.close()

    def _send(self, response: bytes) -> None:
        if self._silent:
            self._unsaid += response
        else:
            self._transport.write(response)


def render(status: int, body: bytes, keep_alive: bool, headers: Mapping[str, str]) -> bytes:
    """The bytes of an answer."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {headers[name]}" for name in headers)]
    # RFC 9110, section 8.6: no Content-Length with 1xx and 204; a 304 has no body either.
    bodiless = status < 200 or status in (204, 304)
    if not bodiless:
        lines.append(f"Content-Length: {len(body)}")
    if not keep_alive:
        lines.append("Connection: close")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1", "replace") + (b"" if bodiless else body)


@lru_cache(maxsize=100)
def rendered(status: int, body: bytes, keep_alive: bool) -> bytes:
    return render(status, body, keep_alive, {})


def bind(host: str, port: int = 0) -> socket.socket:
    """A socket that is bound and does not listen."""
    bound = socket.socket()
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
