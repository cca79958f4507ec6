"""A receiver that answers every POST with 200 and writes down what arrived.

    python receiver.py LOG ID [--ports N] [--delay SECONDS | --silent]

Serves free ports of 127.0.0.1, which it prints, until its standard input is closed. For each
request it appends `SECONDS PATH ID` to LOG: the monotonic clock at the moment the request was
there, its path, and what the first group of the regular expression ID matches in its bytes (head
and body; `-` for no match). The line is written before the answer is sent, so that whatever a
sender may count as delivered is in the log. With a delay it answers that much later; a silent one
takes the request and never answers.

One thread on readiness events, because it shares the machine with what is measured: about 20 µs
of CPU a request on a connection that is kept alive, most of it the kernel's for one `recv` and
one `send`.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import socket
import sys
import time
from collections import deque
from re import Pattern

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HEAD = re.compile(rb"POST (\S+) HTTP/1\.1\r\n(?:.*\r\n)*?content-length: *(\d+)\r\n", re.IGNORECASE)
MOST_BYTES = 2**20
READ_BYTES = 65536


class Receiver:
    """`delay` in seconds; None never answers."""

    def __init__(
        self, log: int, id_pattern: Pattern[bytes], *, ports: int = 1, delay: float | None = 0.0
    ) -> None:
        self._log = log
        self._find_id = id_pattern.search
        self._delay = delay
        self._epoll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self._connections: dict[int, socket.socket] = {}
        self._begun: dict[int, bytes] = {}
        self._later: deque[tuple[float, socket.socket, bytes]] = deque()
        for _ in range(ports):
            listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
            listener.setblocking(False)
            self._listeners[listener.fileno()] = listener
            self._epoll.register(listener.fileno(), select.EPOLLIN)

    @property
    def ports(self) -> list[int]:
        return [listener.getsockname()[1] for listener in self._listeners.values()]

    def serve(self, until_closed: int) -> None:
        """Answer until the descriptor `until_closed` has nothing more to say."""
        self._epoll.register(until_closed, select.EPOLLIN)
        connections = self._connections
        while True:
            lines: list[bytes] = []
            answers: list[tuple[socket.socket, bytes]] = []
            for number, _ in self._epoll.poll(self._patience()):
                connection = connections.get(number)
                if connection is not None:
                    self._read(number, connection, lines, answers)
                elif number == until_closed:
                    return
                elif number in self._listeners:
                    self._accept(self._listeners[number])
            if lines:
                os.write(self._log, b"".join(lines))
            self._answer(answers)

    def _patience(self) -> float:
        """Seconds until the next delayed answer is due; below zero: there is none."""
        return max(0.0, self._later[0][0] - time.monotonic()) if self._later else -1

    def _answer(self, answers: list[tuple[socket.socket, bytes]]) -> None:
        if self._delay is None:
            return
        if self._delay:
            due = time.monotonic() + self._delay
            self._later += ((due, connection, answer) for connection, answer in answers)
            answers = []
            while self._later and self._later[0][0] <= time.monotonic():
                answers.append(self._later.popleft()[1:])
        for connection, answer in answers:
            self._send(connection, answer)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                return
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[connection.fileno()] = connection
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _read(
        self,
        number: int,
        connection: socket.socket,
        lines: list[bytes],
        answers: list[tuple[socket.socket, bytes]],
    ) -> None:
        try:
            data = connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(connection)
            return
        if self._begun:
            data = self._begun.pop(number, b"") + data
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
            found = self._find_id(data, 0, end)
            lines.append(
                b"%.6f %b %b\n" % (time.monotonic(), head[1], b"-" if found is None else found[1])
            )
            answers.append((connection, ANSWER))
            data = data[end:]
        if len(data) > MOST_BYTES:
            answers.append((connection, REFUSAL))
        elif data:
            self._begun[number] = data

    def _send(self, connection: socket.socket, answer: bytes) -> None:
        try:
            sent = connection.send(answer)
        except OSError:
            sent = 0
        # Less than an answer never stands in the way on loopback, unless nobody reads.
        if answer is REFUSAL or sent < len(answer):
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        number = connection.fileno()
        if number < 0:
            return
        self._begun.pop(number, None)
        del self._connections[number]
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("id", help="regular expression with one group")
    parser.add_argument("--ports", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--silent", action="store_true")
    options = parser.parse_args()
    descriptor = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    receiver = Receiver(
        descriptor,
        re.compile(options.id.encode(), re.IGNORECASE),
        ports=options.ports,
        delay=None if options.silent else options.delay,
    )
    print(*receiver.ports, flush=True)
    receiver.serve(until_closed=sys.stdin.fileno())


if __name__ == "__main__":
    main()
