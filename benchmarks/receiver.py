"""A receiver that answers every POST with 200 and writes down what arrived.

    python receiver.py LOG ID

Serves 127.0.0.1 on a free port, which it prints, until its standard input is closed. For each
request it appends `SECONDS PATH ID` to LOG: the monotonic clock at the moment the request was
complete, its path, and what the first group of the regular expression ID matches in its bytes
(head and body; `-` for no match). The line is written before the answer is sent, so that
whatever a sender may count as delivered is in the log.

One thread on readiness events, because it shares the machine with what is measured: about
25 µs of CPU a request on a connection that is kept alive.
"""

from __future__ import annotations

import os
import re
import selectors
import socket
import sys
import time
from re import Pattern

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HEAD = re.compile(rb"POST (\S+) HTTP/1\.1\r\n(?:.*\r\n)*?content-length: *(\d+)\r\n", re.IGNORECASE)
MOST_BYTES = 2**20


class Receiver:
    def __init__(self, log: int, id_pattern: Pattern[bytes]) -> None:
        self._log = log
        self._id_pattern = id_pattern
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._begun: dict[socket.socket, bytes] = {}

    def serve(self, until_closed: int) -> None:
        """Answer until the descriptor `until_closed` has nothing more to say."""
        self._selector.register(until_closed, selectors.EVENT_READ)
        while True:
            lines: list[bytes] = []
            answers: list[tuple[socket.socket, bytes]] = []
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, int):
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.fileobj, lines, answers)  # type: ignore[arg-type]
            if lines:
                os.write(self._log, b"".join(lines))
            for connection, answer in answers:
                self._send(connection, answer)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._selector.register(connection, selectors.EVENT_READ)

    def _read(
        self,
        connection: socket.socket,
        lines: list[bytes],
        answers: list[tuple[socket.socket, bytes]],
    ) -> None:
        try:
            received = connection.recv(65536)
        except OSError:
            received = b""
        if not received:
            self._close(connection)
            return
        data = self._begun.pop(connection, b"") + received
        while data:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            head = HEAD.match(data, 0, end + 2)
            if head is None:
                answers.append((connection, REFUSAL))
                return
            end += 4 + int(head[2])
            if len(data) < end:
                break
            request, data = data[:end], data[end:]
            found = self._id_pattern.search(request)
            name = b"-" if found is None else found[1]
            lines.append(b"%.6f %b %b\n" % (time.monotonic(), head[1], name))
            answers.append((connection, ANSWER))
        if len(data) > MOST_BYTES:
            answers.append((connection, REFUSAL))
        elif data:
            self._begun[connection] = data

    def _send(self, connection: socket.socket, answer: bytes) -> None:
        try:
            sent = connection.send(answer)
        except OSError:
            sent = 0
        # Less than an answer never stands in the way on loopback, unless nobody reads.
        if answer is REFUSAL or sent < len(answer):
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        if connection.fileno() < 0:
            return
        self._begun.pop(connection, None)
        self._selector.unregister(connection)
        connection.close()


def main(log: str, id_pattern: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    receiver = Receiver(descriptor, re.compile(id_pattern.encode(), re.IGNORECASE))
    print(receiver.port, flush=True)
    receiver.serve(until_closed=sys.stdin.fileno())


if __name__ == "__main__":
    main(*sys.argv[1:])
