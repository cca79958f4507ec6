"""What comes on a kept-alive connection while nobody waits for it is nobody's answer."""

from __future__ import annotations

import fcntl
import os
import queue
import socket
import ssl
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
import trustme

from deliveries.transport import Exchange, Transport, polling
from deliveries.transport.libcurl import pycurl
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, Connection, Receiver, receiver
from tests.deliveries.transport.test_names import until

Maker = Callable[..., Transport]


def answer(status: int) -> bytes:
    return b"HTTP/1.1 %d Any\r\nContent-Length: 2\r\n\r\nok" % status


@pytest.fixture(params=["http", "https"])
def wire(
    request: pytest.FixtureRequest, make_transport: Maker, tmp_path: Path
) -> Iterator[tuple[Transport, ssl.SSLContext | None]]:
    """A transport, and the context of the receivers that it trusts."""
    if request.param == "http":
        yield make_transport(timeout=5.0), None
        return
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    yield make_transport(timeout=5.0, ca_file=str(tmp_path / "ca.pem")), context


def has_arrived(sock: socket.socket) -> bool:
    """Whether the other side's kernel has all that was sent."""
    outstanding = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4))
    return outstanding == bytes(4)


class EarlyBird:
    """The first connections answer one request with 200; then `after` happens to them, unasked.

    That is when `read` is set: what comes with an answer itself is another matter. They would
    answer further requests with 502; later connections answer with 503.
    """

    def __init__(self, number: int, after: Callable[[Connection], None]) -> None:
        self._all_asked = threading.Barrier(number)
        self._first = number
        self._lock = threading.Lock()
        self._after = after
        self.read = threading.Event()
        self.over = threading.Semaphore(0)

    def __call__(self, connection: Connection) -> None:
        connection.read_request()
        with self._lock:
            self._first -= 1
            first = self._first >= 0
        while not first:
            connection.send(answer(503))
            connection.read_request()
        self._all_asked.wait(10)
        connection.send(OK)
        assert self.read.wait(10)
        self._after(connection)
        until(lambda: has_arrived(connection.sock))
        self.over.release()
        while True:
            connection.read_request()
            connection.send(answer(502))


def statuses(transport: Transport, server: Receiver, number: int) -> list[int | str]:
    answers = transport.send_many([post(server.url)] * number)
    return [
        one.status_code if isinstance(one, requests.Response) else f"{type(one).__name__}: {one}"
        for one in answers
    ]


@pytest.mark.parametrize("number", [1, 20])
@pytest.mark.parametrize("status", [200, 410])
def test_an_answer_that_comes_before_its_request_is_not_taken_for_the_next(
    wire: tuple[Transport, ssl.SSLContext | None], status: int, number: int
) -> None:
    transport, context = wire
    bird = EarlyBird(number, lambda connection: connection.send(answer(status)))
    with receiver(bird, context) as server:
        assert statuses(transport, server, number) == [200] * number
        bird.read.set()
        bird.read.set()
        for _ in range(number):
            assert bird.over.acquire(timeout=10)
        assert statuses(transport, server, number) == [503] * number


def test_an_answer_that_comes_with_another_is_never_taken_for_another_owners(
    wire: tuple[Transport, ssl.SSLContext | None],
) -> None:
    """With TLS, libcurl takes it for the next one's: only the receiver's own deliveries see it."""
    transport, context = wire

    def two_answers(connection: Connection) -> None:
        connection.read_request()
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        connection.send(OK)
        connection.send(answer(410))
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
        connection.hold()

    with receiver(two_answers, context) as server:
        for owner in ("hostile", "other", "another"):
            ended: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
            transport.submit(post(server.url), ended.put, owner=owner)
            response = ended.get(timeout=10).response
            assert response is not None
            assert response.status_code == 200
        assert server.connections == 3


def test_the_urls_of_one_address_share_its_connections(
    wire: tuple[Transport, ssl.SSLContext | None],
) -> None:
    transport, context = wire
    with receiver(hostile.answers(OK), context) as server:
        for number in range(3):
            assert transport.send(post(f"{server.url}/{number}")).status_code == 200
        assert server.connections == 1


@pytest.mark.parametrize("requests_after", [1, 20])
def test_connections_that_all_close_at_once_fail_no_request(
    wire: tuple[Transport, ssl.SSLContext | None], requests_after: int
) -> None:
    transport, context = wire
    bird = EarlyBird(20, lambda connection: connection.sock.shutdown(2))
    with receiver(bird, context) as server:
        assert statuses(transport, server, 20) == [200] * 20
        bird.read.set()
        bird.read.set()
        for _ in range(20):
            assert bird.over.acquire(timeout=10)
        assert statuses(transport, server, requests_after) == [503] * requests_after


def test_a_connection_that_is_idle_for_longer_is_kept_and_used(
    wire: tuple[Transport, ssl.SSLContext | None],
) -> None:
    transport, context = wire
    with receiver(hostile.answers(OK), context) as server:
        assert statuses(transport, server, 5) == [200] * 5
        opened = server.connections
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            assert statuses(transport, server, 1) == [200]
        assert server.connections == opened


def test_a_number_that_is_another_socket_by_now_is_left_alone() -> None:
    """libcurl closes an idle connection without a word, and the process opens something else."""
    poller = polling.new_poller()
    sockets = polling.Sockets(poller)
    idle, _ = pair = socket.socketpair()
    database, server = socket.socketpair()
    number = idle.fileno()
    sockets.opened(number, 0)
    sockets.changed(pycurl.POLL_IN, number, None, None)
    sockets.changed(pycurl.POLL_REMOVE, number, None, None)
    os.dup2(database.fileno(), number)
    sockets.end_idle(number)
    server.send(b"a row")
    assert database.recv(100) == b"a row"
    for one in (*pair, database, server, poller):
        one.close()
