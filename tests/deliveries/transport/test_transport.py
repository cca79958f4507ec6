"""The transport as such: every request ends exactly once, whatever threads, forks and ends do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import requests

from deliveries.transport import (
    DestinationBlocked,
    Exchange,
    NotStarted,
    Transport,
    TransportClosed,
    classify,
    driver,
    polling,
)
from deliveries.transport import transport as process_transport
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, receiver
from tests.deliveries.transport.test_names import until

Maker = Callable[..., Transport]


class Results:
    """Collects results on the transport's thread and lets a test wait for a number of them."""

    def __init__(self) -> None:
        self.all: list[Exchange] = []
        self._arrived = threading.Semaphore(0)

    def __call__(self, result: Exchange) -> None:
        self.all.append(result)
        self._arrived.release()

    def wait(self, number: int = 1, timeout: float = 10) -> list[Exchange]:
        for _ in range(number):
            assert self._arrived.acquire(timeout=timeout)
        return self.all


def test_two_thousand_requests_from_twenty_threads_each_get_their_own_answer(
    make_transport: Maker,
) -> None:
    transport = make_transport(timeout=20.0)

    def echoes(connection: hostile.Connection) -> None:
        while True:
            body = connection.read_request().partition(b"\r\n\r\n")[2]
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    wrong: list[object] = []

    def sends(thread: int) -> None:
        for number in range(100):
            body = f"{thread}-{number}".encode()
            answer = transport.send(post(server.url, body))
            if answer.content != body:
                wrong.append((body, answer.content))

    with receiver(echoes) as server:
        threads = [threading.Thread(target=sends, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)
        assert server.connections <= 40
    assert wrong == []


def test_send_many_answers_in_the_order_asked(make_transport: Maker) -> None:
    transport = make_transport(timeout=10.0)
    all_there = threading.Barrier(29)

    def behave(connection: hostile.Connection) -> None:
        body = connection.read_request().partition(b"\r\n\r\n")[2]
        all_there.wait(10)
        for _ in range(int(body) % 3):
            connection.pause()
        connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    bodies = [str(number).encode() for number in range(30)]
    with receiver(behave) as server:
        requests_ = [post(server.url, body) for body in bodies]
        requests_[7] = post("http://10.0.0.1/")
        answers = transport.send_many(requests_)
    assert isinstance(answers[7], DestinationBlocked)
    contents = [a.content for a in answers if isinstance(a, requests.Response)]
    assert contents == [body for body in bodies if body != b"7"]
    assert transport.send_many([]) == []


def test_a_request_that_finds_no_place_by_its_time_is_given_back_and_never_sent(
    make_transport: Maker,
) -> None:
    transport = make_transport(timeout=2.0, max_in_flight_total=2)
    hung, late = Results(), Results()
    with receiver(hostile.is_silent) as silent, receiver(hostile.answers(OK)) as server:
        transport.submit(post(silent.url), hung)
        began = time.monotonic()
        transport.submit(post(server.url), late, start_by=began + 0.3)
        (result,) = late.wait()
        assert 0.25 < time.monotonic() - began < 1.8, "in time, not when a place becomes free"
        assert isinstance(result.error, NotStarted)
        assert classify(result.error) == "not_started"
        assert result.elapsed < 0.1
        transport.submit(post(server.url), late, start_by=time.monotonic() - 1)
        transport.submit(post(server.url), late, start_by=began + 60)
        late.wait(2)
        assert hung.all, "the last one was sent when the silent one had ended"
    codes = [classify(one.error) if one.error else "" for one in late.all]
    assert codes == ["not_started", "not_started", ""]
    assert server.connections == 1


def test_a_request_that_waits_has_its_whole_timeout_from_its_start(make_transport: Maker) -> None:
    transport = make_transport(timeout=0.6, max_in_flight_total=2)
    results = Results()
    with receiver(hostile.is_silent) as server:
        began = time.monotonic()
        for _ in range(2):
            transport.submit(post(server.url), results, start_by=began + 5)
        results.wait(2)
        took = time.monotonic() - began
    assert 1.0 < took < 1.9
    assert all(0.4 < result.elapsed < 0.9 for result in results.all)


def test_what_fails_has_places_of_its_own_and_cannot_take_all(make_transport: Maker) -> None:
    """1,000 silent subscriptions with ten requests each; a healthy one does not notice."""
    transport = make_transport(timeout=30.0, max_in_flight_total=400, max_connections=400)
    assert (transport.capacity(recovering=True), transport.capacity(recovering=False)) == (100, 300)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    hole = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    given_back = Results()
    try:
        request = post(hole)
        start_by = time.monotonic() + 5.0
        for _ in range(10_000):
            transport.submit(request, given_back, start_by=start_by, recovering=True)
        assert transport.capacity(recovering=True) < 0, "the others wait"
        with receiver(hostile.answers(OK)) as server:
            began = time.monotonic()
            for _ in range(50):
                assert transport.send(post(server.url)).status_code == 200
            assert time.monotonic() - began < 4
        given_back.wait(9_900)
        assert {type(one.error) for one in given_back.all} == {NotStarted}
        assert transport.capacity(recovering=True) == 0
        assert transport.capacity(recovering=False) == 300
    finally:
        listener.close()


def test_calls_are_made_on_the_transports_thread_in_the_order_given(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, str]] = []
    done = threading.Event()

    def call(number: int) -> None:
        seen.append((number, threading.current_thread().name))
        if number == 99:
            transport.call_soon(done.set)
        if number == 50:
            raise RuntimeError("a bug in a call")

    for number in range(100):
        transport.call_soon(partial(call, number))
    assert done.wait(5)
    assert seen == [(number, "webhook-transport") for number in range(100)]
    assert "a bug in a call" in caplog.text
    transport.close(0)
    with pytest.raises(TransportClosed):
        transport.call_soon(done.set)


def test_a_callback_may_submit_and_one_that_fails_harms_nobody(
    transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    results = Results()

    def fails(result: Exchange) -> None:
        transport.submit(post(server.url), results)
        raise RuntimeError("a bug in a callback")

    with receiver(hostile.answers(OK)) as server:
        transport.submit(post(server.url), fails)
        (result,) = results.wait()
    assert result.response is not None
    assert "a bug in a callback" in caplog.text


def test_waiting_on_the_transports_own_thread_is_refused(transport: Transport) -> None:
    seen: list[BaseException] = []
    done = threading.Event()

    def waits(result: Exchange) -> None:
        try:
            transport.send(post(server.url))
        except RuntimeError as error:
            seen.append(error)
        done.set()

    with receiver(hostile.answers(OK)) as server:
        transport.submit(post(server.url), waits)
        assert done.wait(5)
    assert "own thread" in str(seen[0])


def test_closing_fails_what_is_under_way_and_refuses_what_comes_later(
    make_transport: Maker,
) -> None:
    # The process's own transport may be at work too, since another test.
    others = set(threading.enumerate())
    transport = make_transport(timeout=30.0, max_in_flight_total=2)
    results = Results()
    with receiver(hostile.is_silent) as server:
        for _ in range(5):
            transport.submit(post(server.url), results)
        began = time.monotonic()
        transport.close(0.2)
        assert time.monotonic() - began < 1
        assert [type(result.error) for result in results.wait(5)] == [TransportClosed] * 5
        assert classify(results.all[0].error or OSError()) == "shutdown"
        with pytest.raises(TransportClosed):
            transport.submit(post(server.url), results)
        transport.close(0.2)
    left = set(threading.enumerate()) - others
    assert not [thread for thread in left if thread.name == "webhook-transport"]


def test_closing_lets_what_is_nearly_done_finish(make_transport: Maker) -> None:
    transport = make_transport(timeout=30.0)
    results = Results()
    asked, go = threading.Event(), threading.Event()

    def behave(connection: hostile.Connection) -> None:
        connection.read_request()
        asked.set()
        go.wait(5)
        connection.send(OK)

    with receiver(behave) as server:
        transport.submit(post(server.url), results)
        assert asked.wait(5)
        closing = threading.Thread(target=transport.close, args=(20,))
        closing.start()
        go.set()
        closing.join(5)
        assert not closing.is_alive()
    assert results.wait()[0].response is not None


def test_closing_an_idle_transport_takes_no_time(make_transport: Maker) -> None:
    transport = make_transport()
    with receiver(hostile.answers(OK)) as server:
        transport.send(post(server.url))
        began = time.monotonic()
        transport.close(30)
        assert time.monotonic() - began < 1


def test_send_many_during_a_close_returns(make_transport: Maker) -> None:
    transport = make_transport(timeout=30.0, max_in_flight_total=1)
    answers: list[object] = []
    asked = threading.Event()

    def behave(connection: hostile.Connection) -> None:
        connection.read_request()
        asked.set()
        connection.hold()

    with receiver(behave) as server:
        requests_ = [post(server.url)] * 5000
        waiting = threading.Thread(target=lambda: answers.extend(transport.send_many(requests_)))
        waiting.start()
        assert asked.wait(5)
        until(lambda: transport.capacity(recovering=False) == 1 - 5000)
        transport.close(0)
        waiting.join(10)
        assert not waiting.is_alive()
    assert len(answers) == 5000
    assert all(isinstance(answer, TransportClosed) for answer in answers)


def test_if_the_thread_fails_its_requests_fail_visibly_and_the_next_ones_work(
    make_transport: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    transport = make_transport(timeout=30.0)
    results = Results()
    with receiver(hostile.is_silent) as silent, receiver(hostile.answers(OK)) as server:
        transport.submit(post(silent.url), results)
        with monkeypatch.context() as patch:
            patch.setattr(driver.Driver, "_collect", lambda self: 1 / 0)
            transport.submit(post(server.url), results)
            for result in results.wait(2):
                assert isinstance(result.error, TransportClosed)
        assert transport.send(post(server.url)).status_code == 200
    assert "the transport's thread failed" in caplog.text


def test_a_forked_child_makes_its_own_and_leaves_the_parents_connections_alone(
    tmp_path: Path,
) -> None:
    program = (
        "import os, sys\n"
        "from deliveries.transport import Transport\n"
        "from tests.deliveries.transport.conftest import LOOPBACK, post\n"
        "transport = Transport(timeout=5, allowed_networks=LOOPBACK)\n"
        "assert transport.send(post(sys.argv[1])).status_code == 200\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    assert transport.send(post(sys.argv[1])).status_code == 200\n"
        "    sys.exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "done = []\n"
        "assert transport.send(post(sys.argv[1])).status_code == 200\n"
    )
    with receiver(hostile.answers(OK)) as server:
        subprocess.run(
            [sys.executable, "-c", program, server.url],
            cwd=Path(__file__).parents[3],
            check=True,
            timeout=60,
            env={**os.environ},
        )
        assert server.connections == 2


def test_a_process_that_ends_with_requests_under_way_ends_cleanly() -> None:
    program = (
        "import sys\n"
        "from deliveries.transport import Transport\n"
        "from tests.deliveries.transport.conftest import LOOPBACK, post\n"
        "transport = Transport(timeout=30, allowed_networks=LOOPBACK)\n"
        "transport.submit(post(sys.argv[1]), lambda r: print(type(r.error).__name__, flush=True))\n"
    )
    with receiver(hostile.is_silent) as server:
        ended = subprocess.run(
            [sys.executable, "-c", program, server.url],
            cwd=Path(__file__).parents[3],
            check=True,
            timeout=20,
            capture_output=True,
            text=True,
        )
    assert ended.stdout == "TransportClosed\n"
    assert ended.stderr == ""


def test_where_there_is_no_epoll_poll_does_as_well(
    make_transport: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "new_poller", polling.Poll)
    transport = make_transport()
    with receiver(hostile.answers(OK)) as server:
        answers = transport.send_many([post(server.url)] * 100)
        assert all(isinstance(a, requests.Response) and a.ok for a in answers)
    with receiver(hostile.is_silent) as server:
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            transport.send(post(server.url))
        assert abs(time.monotonic() - began - 1.0) < 0.5


def test_a_lack_of_file_descriptors_is_our_own_fault(make_transport: Maker) -> None:
    def open_socket(*kind: int) -> socket.socket:
        raise OSError(24, "Too many open files")

    with pytest.raises(requests.ConnectionError, match="Too many open files") as raised:
        make_transport(open_socket=open_socket).send(post("http://127.0.0.1:1/"))
    assert classify(raised.value) == "internal"


@pytest.mark.parametrize("timeout", [0, -1, 601, float("nan"), float("inf")])
def test_a_timeout_that_cannot_be_kept_is_refused(transport: Transport, timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        transport.submit(post("http://127.0.0.1/"), lambda result: None, timeout=timeout)


def test_a_request_may_have_a_timeout_of_its_own(make_transport: Maker) -> None:
    transport = make_transport(timeout=30.0)
    with (
        receiver(hostile.is_silent) as server,
        pytest.raises(requests.ReadTimeout, match=r"within 0\.3 s"),
    ):
        transport.send(post(server.url), timeout=0.3)


def test_a_body_must_be_bytes(transport: Transport) -> None:
    request = post("http://127.0.0.1/")
    request.body = "text"
    with pytest.raises(TypeError, match="must be bytes, not str"):
        transport.send(request)


@pytest.mark.parametrize("url", ["", "nonsense", "http://a b/", "ftp://example.com/"])
def test_a_url_that_is_none_is_an_error_of_requests(transport: Transport, url: str) -> None:
    request = post("http://127.0.0.1/")
    request.url = url
    with pytest.raises(requests.RequestException) as raised:
        transport.send(request)
    assert classify(raised.value) == "blocked"


def test_a_response_is_a_real_response(transport: Transport) -> None:
    answer = (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"retry-after: 120\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 6\r\n\r\nb\xc3\xbcsy!"
    )
    with receiver(hostile.answers(answer)) as server:
        request = post(server.url)
        response = transport.send(request)
    assert isinstance(response, requests.Response)
    assert not response.ok
    assert (response.status_code, response.reason) == (503, "Service Unavailable")
    assert response.headers["Retry-After"] == "120"
    assert response.headers["X-A"] == "1, 2"
    assert (response.text, response.encoding) == ("büsy!", "utf-8")
    assert response.url == server.url
    assert response.request is request
    assert response.elapsed.total_seconds() > 0
    assert list(response.iter_content(4)) == [b"b\xc3\xbcs", b"y!"]
    with pytest.raises(requests.HTTPError):
        response.raise_for_status()
    response.close()


def test_the_process_has_one_transport_made_from_the_settings() -> None:
    assert process_transport() is process_transport()
