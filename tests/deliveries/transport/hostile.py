"""Receivers on loopback that misbehave, one function for each way of doing so."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator

PACE = 0.05

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


class Connection:
    """One accepted connection. `send` and `read_request` raise `OSError` when it is over."""

    def __init__(self, sock: socket.socket, over: threading.Event) -> None:
        self.sock = sock
        self.over = over
        self._buffer = b""

    def read_request(self) -> bytes:
        """One whole request, or `ConnectionError` at the end of the stream."""
        while b"\r\n\r\n" not in self._buffer:
            self._read()
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(rest) < length:
            self._read()
            rest = self._buffer.partition(b"\r\n\r\n")[2]
        self._buffer = rest[length:]
        return head + b"\r\n\r\n" + rest[:length]

    def _read(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError("closed by the client")
        self._buffer += data

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def pause(self) -> bool:
        """Wait a little; False if the receiver is being shut down."""
        return not self.over.wait(PACE)

    def hold(self) -> None:
        """Keep the connection open and say nothing until the client or the test ends it."""
        with contextlib.suppress(OSError):
            while not self.over.is_set() and self.sock.recv(65536):
                pass

    def reset(self) -> None:
        """Close with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


Behaviour = Callable[[Connection], None]


class Receiver:
    """A server on 127.0.0.1 that hands each connection to `behaviour` in a thread of its own."""

    def __init__(
        self, behaviour: Behaviour, tls: ssl.SSLContext | None = None, family: int = socket.AF_INET
    ) -> None:
        self._behaviour = behaviour
        self._tls = tls
        self._over = threading.Event()
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self._listener = socket.create_server((host, 0), family=family, backlog=1024)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/hook"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.add(sock)
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._open.add(sock)
            self._behaviour(Connection(sock, self._over))
        with contextlib.suppress(OSError):
            sock.close()

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in (self._accepting, *self._threads):
            thread.join(5)


@contextlib.contextmanager
def receiver(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    server = Receiver(behaviour, tls)
    try:
        yield server
    finally:
        server.close()


def answers(*answer: bytes) -> Behaviour:
    """Read a request, send the answer; again with the next; the last one is repeated."""

    def behave(connection: Connection) -> None:
        number = 0
        while True:
            connection.read_request()
            connection.send(answer[min(number, len(answer) - 1)])
            number += 1

    return behave


def answers_once_and_closes(answer: bytes) -> Behaviour:
    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(answer)

    return behave


def drips(before: bytes, drop: bytes) -> Behaviour:
    """Send `before`, then one `drop` after the other for as long as anybody listens."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(before)
        while connection.pause():
            connection.send(drop)

    return behave


def drips_text(text: bytes) -> Behaviour:
    """Send `text` a byte at a time, and then nothing."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        for byte in text:
            connection.send(bytes([byte]))
            if not connection.pause():
                return
        connection.hold()

    return behave


def floods(before: bytes, chunk: bytes) -> Behaviour:
    """Send `before` and then `chunk` without end, as fast as the network takes it."""

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(before)
        while not connection.over.is_set():
            connection.send(chunk)

    return behave


def is_silent(connection: Connection) -> None:
    connection.read_request()
    connection.hold()


def never_reads(connection: Connection) -> None:
    connection.over.wait()


def closes_without_an_answer(connection: Connection) -> None:
    connection.read_request()


def resets_before_the_answer(connection: Connection) -> None:
    connection.read_request()
    connection.reset()


def resets_within(answer: bytes) -> Behaviour:
    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(answer)
        # The answer must have left before the reset throws away what has not.
        connection.pause()
        connection.reset()

    return behave


def answers_and_closes_the_idle_connection(connection: Connection) -> None:
    connection.read_request()
    connection.send(OK)
    connection.sock.shutdown(socket.SHUT_WR)
    connection.hold()


def gzip_bomb(megabytes: int) -> bytes:
    body = gzip.compress(bytes(megabytes * 2**20))
    return (
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    ) + body
