"""Just enough of an HTTP/1.1 server for `deliveries.receiver`: POST with a Content-Length.

Connections are kept alive; requests on one are answered in order.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

MOST_HEAD_BYTES = 64 * 1024
# The largest that `max_payload_bytes` can be set to.
MOST_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered. `delay` is in seconds; infinity never answers."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


class Owner(Protocol):
    """Who has connections; called on the thread of their event loop."""

    def connected(self, connection: Connection) -> None: ...

    def disconnected(self, connection: Connection) -> None: ...

    def take(self, headers: dict[str, str], body: bytes) -> Answer: ...


class _Refused(Exception):
    """The request cannot be read; answered with `status`, then the connection ends."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class _Head:
    method: str
    headers: dict[str, str]
    length: int
    keep_alive: bool
    expects_continue: bool


class Connection(asyncio.Protocol):
    """One connection. asyncio sets TCP_NODELAY on it."""

    _transport: asyncio.Transport

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._head: _Head | None = None
        self._answering = False
        self._timer: asyncio.TimerHandle | None = None
        self._silent = False
        self._unsaid: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._owner.connected(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._owner.disconnected(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read_requests()

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

    def _read_requests(self) -> None:
        try:
            while not self._answering and not self._transport.is_closing():
                if self._head is None:
                    self._head = self._take_head()
                if self._head is None or len(self._buffer) < self._head.length:
                    return
                head, self._head = self._head, None
                body = bytes(self._buffer[: head.length])
                del self._buffer[: head.length]
                if head.method != "POST":
                    raise _Refused(405, "This receives webhooks; send them by POST.")
                self._answer(self._owner.take(head.headers, body), head.keep_alive)
        except _Refused as refusal:
            self._write(Answer(refusal.status, f"{refusal}\n".encode()), keep_alive=False)

    def _take_head(self) -> _Head | None:
        end = self._buffer.find(b"\r\n\r\n")
        if max(end, len(self._buffer) if end < 0 else 0) > MOST_HEAD_BYTES:
            raise _Refused(431, f"The headers are longer than {MOST_HEAD_BYTES} bytes.")
        if end < 0:
            return None
        text = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        head = _parse_head(text)
        if head.expects_continue and not self._buffer:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return head

    def _answer(self, answer: Answer, keep_alive: bool) -> None:
        if answer.delay <= 0:
            self._write(answer, keep_alive)
            return
        self._answering = True
        if answer.delay < math.inf:
            self._timer = asyncio.get_running_loop().call_later(
                answer.delay, self._answer_late, answer, keep_alive
            )

    def _answer_late(self, answer: Answer, keep_alive: bool) -> None:
        self._answering = False
        self._write(answer, keep_alive)
        self._read_requests()

    def _write(self, answer: Answer, keep_alive: bool) -> None:
        response = _response(answer, keep_alive)
        if self._silent:
            self._unsaid += response
            return
        self._transport.write(response)
        if not keep_alive:
            self._transport.close()


def _parse_head(text: str) -> _Head:
    request_line, *lines = text.split("\r\n")
    method, _, rest = request_line.partition(" ")
    version = rest.rpartition(" ")[2]
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise _Refused(400, "The request line is not that of HTTP/1.1.")
    headers: dict[str, str] = {}
    lower: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise _Refused(400, "A header line is not `name: value`.")
        value = value.strip()
        known = lower.get(name.lower())
        lower[name.lower()] = headers[name] = value if known is None else f"{known}, {value}"
    if "transfer-encoding" in lower:
        raise _Refused(411, "Send a Content-Length instead of a Transfer-Encoding.")
    length = lower.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise _Refused(400, "The Content-Length is not a number.")
    if len(length) > 12 or int(length) > MOST_BODY_BYTES:
        raise _Refused(413, f"The body is longer than {MOST_BODY_BYTES} bytes.")
    connection = _tokens(lower.get("connection", ""))
    return _Head(
        method=method,
        headers=headers,
        length=int(length),
        keep_alive="close" not in connection
        and (version == "HTTP/1.1" or "keep-alive" in connection),
        expects_continue="100-continue" in _tokens(lower.get("expect", "")),
    )


def _tokens(value: str) -> Collection[str]:
    return {part.strip().lower() for part in value.split(",")} if value else ()


def _response(answer: Answer, keep_alive: bool) -> bytes:
    try:
        reason = HTTPStatus(answer.status).phrase
    except ValueError:
        reason = ""
    lines = [f"HTTP/1.1 {answer.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in answer.headers.items()]
    # RFC 9110, section 8.6: no Content-Length with 1xx and 204; a 304 has no body either.
    bodiless = answer.status < 200 or answer.status in (204, 304)
    if not bodiless:
        lines.append(f"Content-Length: {len(answer.body)}")
    if not keep_alive:
        lines.append("Connection: close")
    head = "\r\n".join(lines) + "\r\n\r\n"
    return head.encode("latin-1", "replace") + (b"" if bodiless else answer.body)
