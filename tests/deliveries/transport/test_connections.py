"""Connections are kept and reused, and nothing but our own settings decides where they go."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from deliveries.transport import ConnectionRefused, DestinationBlocked, Transport
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import exchange, post
from tests.deliveries.transport.hostile import OK, receiver

Maker = Callable[..., Transport]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_a_connection_is_kept_and_reused(transport: Transport) -> None:
    with receiver(hostile.answers(OK)) as server:
        for _ in range(20):
            transport.send(post(server.url))
        assert server.connections == 1


def test_the_exchange_says_what_was_dialled_and_how_long_it_took(transport: Transport) -> None:
    with receiver(hostile.answers(OK)) as server:
        began = time.monotonic()
        answered = exchange(transport, post(server.url))
        took = time.monotonic() - began
    assert answered.response is not None
    assert answered.error is None
    assert answered.remote_address == "127.0.0.1"
    assert 0 < answered.elapsed <= took
    refused = exchange(transport, post(server.url))
    assert (refused.response, type(refused.error)) == (None, ConnectionRefused)
    blocked = exchange(transport, post("http://10.0.0.1/"))
    assert (type(blocked.error), blocked.remote_address) == (DestinationBlocked, "")


def test_a_connection_that_the_server_closed_while_idle_is_replaced(transport: Transport) -> None:
    with receiver(hostile.answers_and_closes_the_idle_connection) as server:
        for _ in range(5):
            assert transport.send(post(server.url)).status_code == 200
        assert server.connections == 5


def test_a_request_on_a_new_connection_is_sent_once_even_if_no_answer_comes(
    transport: Transport,
) -> None:
    seen = []

    def behave(connection: hostile.Connection) -> None:
        seen.append(connection.read_request())

    with receiver(behave) as server, pytest.raises(requests.ConnectionError):
        transport.send(post(server.url))
    assert len(seen) == 1


def test_a_body_with_any_bytes_arrives_as_it_is(transport: Transport) -> None:
    seen = []

    def behave(connection: hostile.Connection) -> None:
        while True:
            seen.append(connection.read_request())
            connection.send(OK)

    bodies = [bytes(range(256)) * 500, b"", b"\0", b"{}" * 4000]
    with receiver(behave) as server:
        for body in bodies:
            transport.send(post(server.url, body, **{"X-Empty": "", "Accept-Encoding": "gzip"}))
    assert [request.partition(b"\r\n\r\n")[2] for request in seen] == bodies
    head = seen[0].partition(b"\r\n\r\n")[0].lower()
    assert b"expect:" not in head
    assert b"accept-encoding" not in head
    assert b"x-empty:\r\n" in head
    assert head.count(b"content-length: 128000") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "POST"])
def test_other_methods_leave_no_trace_on_the_next_request(
    make_transport: Maker, method: str
) -> None:
    transport = make_transport(max_in_flight_total=1)
    seen = []

    def behave(connection: hostile.Connection) -> None:
        while True:
            seen.append(connection.read_request())
            connection.send(hostile.NO_CONTENT)

    with receiver(behave) as server:
        transport.send(post(server.url, b"first"))
        transport.send(requests.Request(method, server.url).prepare())
        transport.send(post(server.url, b"last"))
    assert seen[0].startswith(b"POST /hook ")
    assert seen[0].endswith(b"\r\n\r\nfirst")
    assert seen[1].startswith(method.encode() + b" /hook ")
    assert seen[1].endswith(b"\r\n\r\n")
    assert seen[2].startswith(b"POST /hook ")
    assert seen[2].endswith(b"\r\n\r\nlast")


def test_the_environments_proxies_and_netrc_are_ignored(
    make_transport: Maker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login u password p\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with receiver(lambda connection: None) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        seen = []

        def behave(connection: hostile.Connection) -> None:
            seen.append(connection.read_request())
            connection.send(OK)

        with receiver(behave) as server:
            assert make_transport().send(post(server.url)).status_code == 200
        assert proxy.connections == 0
    assert b"authorization" not in seen[0].lower()


def test_cookies_are_not_kept(transport: Transport) -> None:
    seen = []

    def behave(connection: hostile.Connection) -> None:
        while True:
            seen.append(connection.read_request())
            connection.send(
                b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b; Path=/\r\nContent-Length: 0\r\n\r\n"
            )

    with receiver(behave) as server:
        response = transport.send(post(server.url))
        transport.send(post(server.url))
    assert b"cookie" not in seen[1].lower()
    assert len(response.cookies) == 0


def test_a_header_with_a_line_break_is_refused(transport: Transport) -> None:
    with receiver(hostile.answers(OK)) as server:
        request = post(server.url)
        request.headers["X-A"] = "b\r\nX-Injected: c"
        with pytest.raises(requests.exceptions.InvalidHeader):
            transport.send(request)
        assert server.connections == 0


@linux
def test_sockets_are_not_inherited_by_programs_that_we_start(transport: Transport) -> None:
    flags = []

    def behave(connection: hostile.Connection) -> None:
        connection.read_request()
        peer = connection.sock.getpeername()
        for entry in os.listdir("/proc/self/fd"):
            try:
                with socket.socket(fileno=os.dup(int(entry))) as copy:
                    if copy.family == socket.AF_INET and copy.getsockname() == peer:
                        flags.append(os.get_inheritable(int(entry)))
            except OSError:
                continue
        connection.send(OK)

    with receiver(behave) as server:
        transport.send(post(server.url))
    assert flags == [False]


@linux
def test_closing_a_transport_gives_back_every_descriptor(make_transport: Maker) -> None:
    with receiver(hostile.answers_once_and_closes(OK)) as server:
        before = len(os.listdir("/proc/self/fd"))
        transport = make_transport()
        for _ in range(30):
            transport.send(post(server.url))
        transport.close(0)
        server.close()
        assert len(os.listdir("/proc/self/fd")) <= before
