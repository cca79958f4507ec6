"""The local receiver: what it tells about requests, and how it can be dead, silent and slow."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, RemoteDisconnected

import pytest

from deliveries.sending import signing
from subscriptions.secrets import signing_secrets
from webhooks_project.receiver import Answer, Received, Receiver

SECRET = signing_secrets.generate()
BODY = b'{"v":1}'
# Nothing here takes longer than some milliseconds; only a failure waits this long.
TIMEOUT = 10.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


def connect(receiver: Receiver, timeout: float = TIMEOUT) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", receiver.port, timeout=timeout)


def signed(
    body: bytes = BODY, secret: str = SECRET, topic: str = "order.created"
) -> dict[str, str]:
    return signing.headers(
        body,
        event_id="event-1",
        topic=topic,
        timestamp=int(time.time()),
        secrets=[secret],
        prefix="X-Webhook",
    )


def post(
    receiver: Receiver, body: bytes = BODY, headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    with closing(connect(receiver)) as connection:
        connection.request("POST", "/", body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


def exchange(receiver: Receiver, data: bytes) -> bytes:
    """Send raw bytes; everything that comes back until the receiver closes."""
    with socket.create_connection(("127.0.0.1", receiver.port), TIMEOUT) as raw:
        raw.sendall(data)
        return b"".join(iter(lambda: raw.recv(65536), b""))


def test_it_tells_id_topic_body_and_headers_of_a_request(receiver: Receiver) -> None:
    assert post(receiver, headers=signed(topic="größe.100%")) == (200, b"")
    [received] = receiver.received
    assert (received.id, received.topic, received.body) == ("event-1", "größe.100%", BODY)
    assert received.headers["X-Webhook-Event-Id"] == received.header("x-webhook-event-id")
    assert received.header("no-such-header") == ""
    assert (received.verified, received.problem, received.answered) == (None, "", 200)
    assert received.at <= time.monotonic()


def test_a_signature_is_verified_with_each_known_secret() -> None:
    later = signing_secrets.generate()
    with Receiver(secrets=[signing_secrets.generate(), SECRET]) as receiver:
        assert post(receiver, headers=signed())[0] == 200
        assert post(receiver, headers=signed(secret=later))[0] == 401
        receiver.add_secret(later)
        assert post(receiver, headers=signed(secret=later))[0] == 200
        assert [one.verified for one in receiver.received] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda headers: headers.pop("webhook-signature"), "webhook-signature is missing"),
        (lambda headers: headers.update({"webhook-timestamp": "1"}), "old"),
        (lambda headers: headers.update({"webhook-id": "other"}), "no signature"),
    ],
)
def test_a_bad_signature_is_answered_401_with_the_reason(
    change: Callable[[dict[str, str]], object], problem: str
) -> None:
    headers = signed()
    change(headers)
    with Receiver(secrets=[SECRET]) as receiver:
        status, body = post(receiver, headers=headers)
        assert status == 401
        assert problem in body.decode()
        assert receiver.received[0].problem == body.decode()


def test_a_text_that_is_no_secret_is_refused() -> None:
    with pytest.raises(signing_secrets.InvalidSecret):
        Receiver(secrets=["hunter2"])


def test_neither_body_nor_headers_are_in_the_repr() -> None:
    with Receiver() as receiver:
        post(receiver, b"body-text", {"Authorization": "Bearer token-text"})
        assert "text" not in repr(receiver.received)


def test_respond_decides_status_body_and_headers() -> None:
    def respond(received: Received) -> Answer:
        return Answer(503, received.body.upper(), {"Retry-After": "7"})

    with Receiver(respond=respond) as receiver, closing(connect(receiver)) as connection:
        connection.request("POST", "/", b"later")
        answer = connection.getresponse()
        assert (answer.status, answer.reason) == (503, "Service Unavailable")
        assert answer.getheader("Retry-After") == "7"
        assert answer.read() == b"LATER"
        assert receiver.received[0].answered == 503


@pytest.mark.parametrize("status", [204, 304, 599])
def test_any_status_keeps_the_connection_in_step(status: int) -> None:
    with (
        Receiver(respond=lambda _: Answer(status, b"text")) as receiver,
        closing(connect(receiver)) as connection,
    ):
        for _ in range(2):
            connection.request("POST", "/", BODY)
            answer = connection.getresponse()
            assert answer.status == status
            assert answer.read() == (b"text" if status == 599 else b"")


def test_one_connection_serves_many_requests(receiver: Receiver) -> None:
    with closing(connect(receiver)) as connection:
        connection.connect()
        port = connection.sock.getsockname()[1]
        for number in range(50):
            connection.request("POST", "/", str(number).encode())
            assert connection.getresponse().read() == b""
        assert connection.sock.getsockname()[1] == port
    assert [one.body for one in receiver.received] == [str(n).encode() for n in range(50)]


def test_requests_sent_ahead_are_answered_in_order() -> None:
    def respond(received: Received) -> Answer:
        return Answer(200, received.body, delay=0.05 if received.body == b"1" else 0)

    one = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n%s\r\n%d"
    with Receiver(respond=respond) as receiver:
        answers = exchange(
            receiver, one % (b"", 1) + one % (b"", 2) + one % (b"Connection: close\r\n", 3)
        )
    assert [part[-1:] for part in answers.split(b"HTTP/1.1 200 OK")[1:]] == [b"1", b"2", b"3"]


def test_a_body_in_small_pieces_is_put_together(receiver: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), TIMEOUT) as raw:
        for byte in b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello":
            raw.sendall(bytes([byte]))
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK")
    assert receiver.received[0].body == b"hello"


def test_a_body_in_chunks_is_put_together(receiver: Receiver) -> None:
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    exchange(receiver, head + b"3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n")
    assert receiver.received[0].body == b"hello"


def test_headers_of_one_name_are_joined(receiver: Receiver) -> None:
    post(receiver)
    exchange(receiver, b"POST / HTTP/1.1\r\nA: 1\r\na: 2\r\nConnection: close\r\n\r\n")
    assert receiver.received[1].headers == {"A": "1, 2", "Connection": "close"}


def test_a_sender_that_asks_whether_to_go_on_is_told_so(receiver: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), TIMEOUT) as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        assert raw.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"ok")
        assert raw.recv(65536).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
    ],
)
def test_what_it_cannot_read_is_refused_and_not_recorded(
    receiver: Receiver, request_: bytes, status: int
) -> None:
    assert exchange(receiver, request_).startswith(b"HTTP/1.1 %d " % status)
    assert receiver.received == []


def test_a_delay_holds_one_answer_back_and_no_other_request() -> None:
    slow = threading.Event()

    def respond(received: Received) -> Answer:
        return Answer(delay=math.inf if received.body == b"slow" else 0)

    with (
        Receiver(respond=respond, on_request=lambda _: slow.set()) as receiver,
        closing(connect(receiver)) as stuck,
    ):
        stuck.request("POST", "/", b"slow")
        assert slow.wait(TIMEOUT)
        assert post(receiver, b"quick") == (200, b"")
        receiver.stop()
        with pytest.raises((RemoteDisconnected, ConnectionResetError)):
            stuck.getresponse()


def test_a_delay_is_in_seconds() -> None:
    with Receiver(respond=lambda _: Answer(delay=0.1)) as receiver:
        begun = time.monotonic()
        assert post(receiver)[0] == 200
        assert time.monotonic() - begun >= 0.1


def test_a_stopped_receiver_refuses_and_comes_back_on_the_same_port(receiver: Receiver) -> None:
    with socket.create_connection(("127.0.0.1", receiver.port), TIMEOUT) as kept:
        kept.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 OK")
        for _ in range(2):
            receiver.stop()
        assert kept.recv(65536) == b""
    with pytest.raises(ConnectionRefusedError):
        post(receiver)
    for _ in range(2):
        receiver.start()
    assert post(receiver, b"3")[0] == 200
    assert [one.body for one in receiver.received] == [b"1", b"3"]


def test_a_paused_receiver_is_silent_and_then_answers_what_came(receiver: Receiver) -> None:
    with closing(connect(receiver)) as known, closing(connect(receiver)) as new:
        known.connect()
        receiver.pause()
        known.request("POST", "/", b"known")
        new.request("POST", "/", b"new")
        assert not receiver.wait_for(1, 0.05)
        receiver.start()
        assert known.getresponse().status == new.getresponse().status == 200
    assert {one.body for one in receiver.received} == {b"known", b"new"}


def test_a_pause_keeps_a_late_answer_back_too() -> None:
    with Receiver(respond=lambda _: Answer(delay=0.02)) as receiver:
        with closing(connect(receiver, timeout=0.2)) as connection:
            connection.request("POST", "/", BODY)
            assert receiver.wait_for(1, TIMEOUT)
            receiver.pause()
            with pytest.raises(TimeoutError):
                connection.getresponse()
        with closing(connect(receiver)) as connection:
            connection.request("POST", "/", BODY)
            receiver.start()
            assert connection.getresponse().status == 200


def test_wait_for_takes_a_number_or_a_predicate(receiver: Receiver) -> None:
    assert not receiver.wait_for(1, 0.01)
    sender = threading.Thread(target=lambda: [post(receiver, b"%d" % n) for n in range(5)])
    sender.start()
    assert receiver.wait_for(3, TIMEOUT)
    assert receiver.wait_for(lambda seen: any(one.body == b"4" for one in seen), TIMEOUT)
    assert not receiver.wait_for(lambda seen: len(seen) > 5, 0.01)
    sender.join(TIMEOUT)


def test_without_keep_requests_are_only_counted() -> None:
    seen: list[Received] = []
    with Receiver(keep=False, on_request=seen.append) as receiver:
        post(receiver)
        assert receiver.wait_for(1, TIMEOUT)
        assert (receiver.count, receiver.received, len(seen)) == (1, [], 1)


def test_a_failing_callback_is_logged_and_answered_500(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(received: Received) -> Answer:
        raise LookupError("no such thing")

    with Receiver(respond=fail) as receiver:
        assert post(receiver)[0] == 500
        assert post(receiver)[0] == 500
    assert "no such thing" in caplog.text


def test_a_taken_port_is_an_error_at_once(receiver: Receiver) -> None:
    with pytest.raises(OSError, match="in use"):
        Receiver(port=receiver.port)


def test_closing_gives_the_port_back_and_ends_the_thread() -> None:
    before = threading.active_count()
    receiver = Receiver()
    receiver.start()
    receiver.close()
    receiver.close()
    assert threading.active_count() == before
    Receiver(port=receiver.port).close()
    with pytest.raises(RuntimeError, match="closed"):
        receiver.start()


def test_many_senders_lose_nothing(receiver: Receiver) -> None:
    def send(thread: int) -> None:
        with closing(connect(receiver)) as connection:
            for number in range(50):
                connection.request("POST", "/", b"%d-%d" % (thread, number))
                connection.getresponse().read()

    threads = [threading.Thread(target=send, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    assert receiver.wait_for(500, TIMEOUT)
    for thread in threads:
        thread.join(TIMEOUT)
    assert len({one.body for one in receiver.received}) == len(receiver.received) == 500
