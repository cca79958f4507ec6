"""Whatever a receiver does, a request ends in time, in little memory, with the right name."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import psutil
import pycurl
import pytest
import requests

from deliveries.transport import Transport, classify, text_for_operators
from deliveries.transport.text import KEPT_BYTES
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, Behaviour, receiver

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"x" * 4096


def failure(transport: Transport, url: str) -> requests.RequestException:
    with pytest.raises(requests.RequestException) as raised:
        transport.send(post(url))
    return raised.value


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(hostile.is_silent, id="silence"),
        pytest.param(hostile.drips_text(b"HTTP/1.1 200 OK and so on and on"), id="status line"),
        pytest.param(hostile.drips(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"), id="headers"),
        pytest.param(hostile.drips(b"HTTP/1.1 200 OK\r\nX-A: ", b"b"), id="one header"),
        pytest.param(
            hostile.drips(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), id="body"
        ),
        pytest.param(hostile.drips(CHUNKED, b"1\r\nx\r\n"), id="chunks"),
        pytest.param(hostile.drips(CHUNKED + b"1;", b"x"), id="chunk extension"),
        pytest.param(hostile.drips(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"), id="103 dripped"),
        pytest.param(hostile.never_reads, id="never reads"),
    ],
)
def test_a_dripped_answer_ends_at_the_deadline(transport: Transport, behaviour: Behaviour) -> None:
    with receiver(behaviour) as server:
        began = time.monotonic()
        error = failure(transport, server.url)
        took = time.monotonic() - began
    assert abs(took - 1.0) < 0.5
    assert classify(error) == "timeout"
    assert isinstance(error, requests.ReadTimeout)
    assert "within 1 s" in str(error)


def test_a_large_request_that_nobody_reads_ends_at_the_deadline(transport: Transport) -> None:
    with receiver(hostile.never_reads) as server:
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            transport.send(post(server.url, bytes(32 * 2**20)))
        assert abs(time.monotonic() - began - 1.0) < 0.5


def test_a_stalled_tls_handshake_ends_at_the_deadline(transport: Transport) -> None:
    with receiver(hostile.Connection.hold) as server:
        began = time.monotonic()
        error = failure(transport, server.url.replace("http:", "https:"))
        took = time.monotonic() - began
    assert abs(took - 1.0) < 0.5
    assert isinstance(error, requests.ConnectTimeout)
    # libcurl before 8.23 does not say that the connection was there already.
    reached = pycurl.version_info()[2] >= 0x081700
    what = "TLS handshake not finished" if reached else "no connection"
    assert str(error) == f"{what} within 1 s"


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(hostile.floods(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), id="100"),
        pytest.param(hostile.floods(b"", b"HTTP/1.1 103 Hints\r\nA: b\r\n\r\n" * 100), id="103"),
        pytest.param(hostile.floods(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n" * 1000), id="headers"),
        pytest.param(
            hostile.answers(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 2**20 + b"\r\n"),
            id="6 MB of headers",
        ),
        pytest.param(hostile.floods(b"HTTP/1.1 200 OK\r\nX-A: ", BODY), id="one header"),
        pytest.param(hostile.floods(b"HTTP/1.1 200 ", BODY), id="status line"),
        pytest.param(hostile.floods(CHUNKED + b"1;", BODY), id="chunk extension"),
        pytest.param(hostile.floods(CHUNKED + b"0\r\n", b"X-A: b\r\n" * 1000), id="trailers"),
    ],
)
def test_a_flood_ends_early_in_little_memory(
    make_transport: Callable[..., Transport], behaviour: Behaviour
) -> None:
    transport = make_transport(timeout=20.0)
    with receiver(behaviour) as server:
        tracemalloc.start()
        resident = psutil.Process().memory_info().rss
        began = time.monotonic()
        error = failure(transport, server.url)
        took = time.monotonic() - began
        grown = psutil.Process().memory_info().rss - resident
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert took < 10
    assert classify(error) == "protocol"
    assert peak < 12 * 2**20
    assert grown < 24 * 2**20


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(CHUNKED + b"%x\r\n" % 2**40, id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="until close"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", id="length"),
    ],
)
def test_an_endless_body_is_dropped_and_the_answer_stands(
    transport: Transport, start: bytes
) -> None:
    with receiver(hostile.floods(start, BODY)) as server:
        resident = psutil.Process().memory_info().rss
        began = time.monotonic()
        response = transport.send(post(server.url))
        took = time.monotonic() - began
        grown = psutil.Process().memory_info().rss - resident
    assert response.status_code == 200
    assert response.content == b"x" * (KEPT_BYTES + 1)
    assert response.truncated
    assert took < 0.8
    assert grown < 16 * 2**20


def test_a_connection_with_a_dropped_body_is_not_used_again(transport: Transport) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200000)
    with receiver(hostile.answers(answer)) as server:
        assert [transport.send(post(server.url)).status_code for _ in range(3)] == [200] * 3
        assert server.connections == 3


def test_a_body_of_the_limit_is_read_to_its_end(transport: Transport) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 65536\r\n\r\n" + bytes(65536)
    with receiver(hostile.answers(answer)) as server:
        responses = [transport.send(post(server.url)) for _ in range(2)]
        assert not any(response.truncated for response in responses)
        assert server.connections == 1


def test_what_is_kept_of_a_body_ends_between_two_characters(transport: Transport) -> None:
    body = ("x" * (KEPT_BYTES - 1) + "é").encode()
    answer = b"HTTP/1.1 500 Any\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with receiver(hostile.answers(answer)) as server:
        kept = transport.send(post(server.url)).content
    assert text_for_operators(kept) == "x" * (KEPT_BYTES - 1)


def test_a_gzip_bomb_is_left_alone(transport: Transport) -> None:
    bomb = hostile.gzip_bomb(8)
    with receiver(hostile.answers(bomb)) as server:
        response = transport.send(post(server.url))
    assert response.status_code == 200
    assert response.content == bomb.partition(b"\r\n\r\n")[2][: KEPT_BYTES + 1]


@pytest.mark.parametrize("times", [1, 20])
def test_informational_answers_before_a_200_are_a_200(transport: Transport, times: int) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
    with receiver(hostile.answers(b"HTTP/1.1 100 Continue\r\n\r\n" + early * times + OK)) as server:
        response = transport.send(post(server.url))
        again = transport.send(post(server.url))
    assert (response.status_code, response.content) == (200, b"ok")
    assert "X-Early" not in response.headers
    assert again.status_code == 200


def once(answer: bytes) -> Behaviour:
    return hostile.answers_once_and_closes(answer)


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (hostile.closes_without_an_answer, "reset"),
        (hostile.resets_before_the_answer, "reset"),
        (hostile.resets_within(b"HTTP/1.1 200 OK\r\nContent-Le"), "reset"),
        (hostile.resets_within(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "reset"),
        (once(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "reset"),
        (once(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"), "protocol"),
        (once(CHUNKED + b"5\r\nab"), "protocol"),
        (once(CHUNKED + b"nonsense\r\n"), "protocol"),
        (once(CHUNKED + b"5\r\nabcdefgh\r\n"), "protocol"),
        (once(CHUNKED + b"f" * 40 + b"\r\n"), "protocol"),
        (once(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), "protocol"),
        (once(b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nabcde"), "protocol"),
        (
            once(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
            "protocol",
        ),
        (once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc"), "protocol"),
        (once(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nabc"), "protocol"),
        (once(b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n"), "protocol"),
        (once(b"hello, this is HTTP/0.9"), "protocol"),
        (once(b"HTTP/1.1 OK 200\r\n\r\n"), "protocol"),
        (once(b"HTTP/1.1 20\r\n\r\n"), "protocol"),
        (once(b"HTTP/1.1 000 None\r\n\r\n"), "protocol"),
        (once(b"\0\xff\x16\x03" * 50), "protocol"),
        (once(b"SSH-2.0-OpenSSH_9.7\r\n"), "protocol"),
    ],
)
def test_a_broken_answer_has_the_right_name(
    transport: Transport, behaviour: Behaviour, code: str
) -> None:
    with receiver(behaviour) as server:
        error = failure(transport, server.url)
        assert classify(error) == code, error
        assert isinstance(error, requests.RequestException)
        assert str(error).isprintable()
        assert str(server.port) not in str(error)


def test_trailers_are_not_taken_for_headers(transport: Transport) -> None:
    answer = CHUNKED + b"2\r\nok\r\n0\r\nRetry-After: 9\r\n\r\n"
    with receiver(hostile.answers(answer)) as server:
        response = transport.send(post(server.url))
    assert (response.content, response.headers) == (b"ok", {"Transfer-Encoding": "chunked"})


def test_a_reset_after_a_whole_answer_is_an_answer(transport: Transport) -> None:
    with receiver(hostile.resets_within(OK)) as server:
        assert transport.send(post(server.url)).status_code == 200


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:{port}/elsewhere", "http://169.254.169.254/latest/meta-data/"]
)
def test_redirects_are_answers_and_are_not_followed(
    make_transport: Callable[..., Transport], status: int, location: str
) -> None:
    opened: list[object] = []

    def open_socket(*kind: int) -> hostile.socket.socket:
        opened.append(kind)
        return hostile.socket.socket(*kind)

    transport = make_transport(open_socket=open_socket)
    with receiver(lambda c: None) as other:
        target = location.format(port=other.port)
        answer = b"HTTP/1.1 %d Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n"
        with receiver(hostile.answers(answer % (status, target.encode()))) as server:
            response = transport.send(post(server.url))
        assert other.connections == 0
    assert response.status_code == status
    assert response.headers["location"] == target
    assert len(opened) == 1


def test_a_refused_connection_has_its_name(transport: Transport) -> None:
    with receiver(lambda c: None) as server:
        url = server.url
    error = failure(transport, url)
    assert classify(error) == "refused"
    assert str(error) == "connection refused"
