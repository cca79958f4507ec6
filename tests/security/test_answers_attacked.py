"""What a hostile receiver answers: recorded for what it is, shown harmless, and never obeyed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from deliveries import publish
from deliveries.models import Attempt, Delivery, Lane
from deliveries.transport import Transport
from subscriptions.models import Subscription
from tests.commands import run, run_json
from tests.deliveries.transport import hostile
from tests.deliveries.transport.conftest import post
from tests.deliveries.transport.hostile import OK, Connection, receiver
from tests.factories import make_subscription

Maker = Callable[..., Transport]

# Committed rows, which threads see. Naming the apps makes the cleaning up behind them cheap.
IN_THE_DATABASE = pytest.mark.django_db(
    transaction=True, available_apps=["subscriptions", "deliveries"]
)


def http(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d Any" % status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


# name: (answer, delivery's status, attempt's outcome, status code)
ANSWERS: dict[str, tuple[bytes, str, str, int | None]] = {
    "redirect-to-metadata": (
        http(302, b"", b"Location: http://169.254.169.254/latest/meta-data/"),
        "failed", "http", 302,
    ),
    "redirect-to-a-file": (http(301, b"", b"Location: file:///etc/passwd"), "failed", "http", 301),
    "redirect-to-itself": (http(307, b"", b"Location: /hook"), "failed", "http", 307),
    "redirect-without-location": (http(308), "failed", "http", 308),
    "multiple-choices": (http(300), "failed", "http", 300),
    "not-modified": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "failed", "http", 304),
    "asks-for-a-password": (
        http(401, b"", b'WWW-Authenticate: Basic realm="your password, please"'),
        "failed", "http", 401,
    ),
    "asks-for-ntlm": (
        http(401, b"", b"WWW-Authenticate: NTLM", b"WWW-Authenticate: Negotiate"),
        "failed", "http", 401,
    ),
    "poses-as-a-proxy": (
        http(407, b"", b'Proxy-Authenticate: Basic realm="x"'), "failed", "http", 407,
    ),
    "switches-protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        "pending", "reset", None,
    ),
    "upgrade-offered": (
        http(426, b"", b"Upgrade: h2c", b"Connection: Upgrade"), "failed", "http", 426,
    ),
    "status-of-600": (http(600), "failed", "http", 600),
    "status-of-999": (http(999), "failed", "http", 999),
    "status-of-000": (b"HTTP/1.1 000 None\r\n\r\n", "pending", "protocol", None),
    "status-of-two-digits": (b"HTTP/1.1 20 OK\r\n\r\n", "pending", "protocol", None),
    # libcurl reads three digits and takes what follows for the reason.
    "status-of-four-digits": (b"HTTP/1.1 4100 OK\r\n\r\n", "failed", "http", 410),
    "success-in-the-reason-only": (b"HTTP/1.1 OK 200\r\n\r\n", "pending", "protocol", None),
    "http-0.9": (b"OK 200", "pending", "protocol", None),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "pending", "protocol", None),
    "http-of-an-unknown-version": (b"HTTP/9.9 200 OK\r\n\r\n", "pending", "protocol", None),
    "http-of-a-version-in-between": (
        b"HTTP/1.2 200 OK\r\nContent-Length: 0\r\n\r\n", "pending", "protocol", None,
    ),
    "http-3.7": (b"HTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n", "pending", "protocol", None),
    "http-3": (b"HTTP/3 200\r\nContent-Length: 0\r\n\r\n", "pending", "protocol", None),
    "http-3.7-after-early-hints": (
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/3.7 200 OK\r\nContent-Length: 0\r\n\r\n",
        "pending", "protocol", None,
    ),
    "http-1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "succeeded", "success", 200),
    "two-lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 50\r\n\r\nok",
        "pending", "protocol", None,
    ),
    "negative-length": (
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "pending", "protocol", None,
    ),
    "length-beyond-64-bits": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n" + b"x" * 70000,
        "succeeded", "success", 200,
    ),
    "body-with-nul": (http(500, b"a\0b"), "pending", "http", 500),
    "body-not-utf-8": (http(500, b"\xff\xfe\xed\xa0\x80\xc0\x80"), "pending", "http", 500),
    "body-with-escapes": (http(500, b"\x1b]0;owned\x07\x1b[2J\x9b31m"), "pending", "http", 500),
    "body-with-bidi": (http(500, "\u202egnp.exe\u2066".encode()), "pending", "http", 500),
    "body-with-script": (
        http(500, b"<script>alert(1)</script>"), "pending", "http", 500,
    ),
    "body-with-line-breaks": (
        http(500, b"ok\r\n2026-01-01 INFO deliveries: all is well\r\n"), "pending", "http", 500,
    ),
    "body-of-format-characters": (http(500, b"%s %n {0} ${jndi:x}"), "pending", "http", 500),
    "body-of-sql": (http(500, b"'); DROP TABLE deliveries_attempt; --"), "pending", "http", 500),
    "body-of-a-megabyte": (http(500, b"x" * 2**20), "pending", "http", 500),
    "header-without-end": (
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000 + b"\r\n\r\n", "pending", "protocol", None,
    ),
    "ten-thousand-headers": (
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", "pending", "protocol", None,
    ),
    "nul-in-a-header": (b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", "pending", "protocol", None),
    "retry-after-of-a-century": (
        http(503, b"", b"Retry-After: 3153600000"), "pending", "http", 503,
    ),
    "retry-after-of-5000-digits": (
        http(503, b"", b"Retry-After: " + b"9" * 5000), "pending", "http", 503,
    ),
    "retry-after-in-the-past": (
        http(503, b"", b"Retry-After: Thu, 01 Jan 1970 00:00:00 GMT"), "pending", "http", 503,
    ),
    "retry-after-of-year-9999": (
        http(503, b"", b"Retry-After: Fri, 31 Dec 9999 23:59:59 -2359"), "pending", "http", 503,
    ),
    "retry-after-nonsense": (http(429, b"", b"Retry-After: \xb2, soon"), "pending", "http", 429),
}  # fmt: skip


def deliver_to(url: str, send: Callable[..., None]) -> tuple[Subscription, Delivery, Attempt]:
    subscription = make_subscription(url=url)
    publish("test.attack", {"a": 1})
    send(subscription)
    delivery = Delivery.objects.get(subscription=subscription)
    return subscription, delivery, Attempt.objects.get(delivery=delivery)


@IN_THE_DATABASE
@pytest.mark.parametrize(("answer", "status", "outcome", "code"), ANSWERS.values(), ids=ANSWERS)
def test_a_hostile_answer_is_recorded_for_what_it_is(
    send: Callable[..., None], answer: bytes, status: str, outcome: str, code: int | None
) -> None:
    with receiver(hostile.answers_once_and_closes(answer)) as server:
        subscription, delivery, attempt = deliver_to(server.url, send)
        assert server.connections == 1, "nothing is followed, and nothing asked twice"
    assert (delivery.status, attempt.outcome, attempt.status_code) == (status, outcome, code)
    subscription.refresh_from_db()
    shown = [delivery.last_error, attempt.error, attempt.response_body, subscription.last_error]
    for text in shown:
        assert len(text) <= 2000
        assert text.replace("\n", "").isprintable(), ascii(text)
    if delivery.status == "pending":
        assert delivery.next_attempt_at is not None
        wait = (delivery.next_attempt_at - attempt.started_at).total_seconds()
        assert 0.5 <= wait <= 86400 + 60
    listed = run("subscriptions")
    assert all(line.isprintable() for line in listed.splitlines())
    assert run_json("subscriptions")[0]["last_error"] == subscription.last_error


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([b'Alt-Svc: h2="169.254.169.254:80"; ma=86400; persist=1'], id="alt-svc"),
        pytest.param([b"Strict-Transport-Security: max-age=31536000"], id="hsts"),
        pytest.param([b"Set-Cookie: a=1; Domain=127.0.0.1", b"Set-Cookie2: a=b"], id="cookie"),
        pytest.param([b"Refresh: 0; url=http://169.254.169.254/"], id="refresh"),
        pytest.param([b"Link: <http://169.254.169.254/>; rel=preload"], id="link"),
        pytest.param([b"Content-Location: http://169.254.169.254/"], id="content-location"),
        pytest.param([b"Clear-Site-Data: *", b"Connection: X-Next"], id="connection-options"),
        pytest.param([b"Keep-Alive: timeout=999999999, max=99999"], id="keep-alive"),
        pytest.param([b"Content-Encoding: gzip, br, zstd, x-nested"], id="content-encoding"),
        pytest.param([b"Proxy: http://169.254.169.254/"], id="proxy"),
    ],
)  # fmt: skip
def test_no_header_of_an_answer_changes_the_next_request(
    make_transport: Maker, headers: list[bytes]
) -> None:
    seen: list[bytes] = []
    opened: list[int] = []

    def open_socket(*kind: int) -> socket.socket:
        opened.append(1)
        return socket.socket(*kind)

    def behave(connection: Connection) -> None:
        while True:
            seen.append(connection.read_request())
            connection.send(http(200, b"ok", *headers))

    transport = make_transport(open_socket=open_socket)
    with receiver(behave) as server:
        for _ in range(3):
            assert transport.send(post(server.url)).content == b"ok"
    assert len(seen) == 3
    assert len(set(seen)) == 1
    assert len(opened) == 1


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next(transport: Transport) -> None:
    """Two answers to one request: the second would make the next delivery a success."""
    with receiver(hostile.answers(OK + http(410, b"smuggled"), OK)) as server:
        statuses = [transport.send(post(server.url)).status_code for _ in range(4)]
        assert statuses == [200] * 4
        assert server.connections == 4, "such a connection is not used again"


def test_an_answer_that_comes_unasked_on_an_idle_connection_is_nobody_elses(
    transport: Transport,
) -> None:
    """It may count as the next answer of the receiver that sent it, and of no other."""
    sent = threading.Semaphore(0)

    def behave(connection: Connection) -> None:
        connection.read_request()
        connection.send(OK)
        connection.pause()
        connection.send(http(410, b"smuggled"))
        sent.release()
        connection.hold()

    with receiver(behave) as liar, receiver(hostile.answers(OK)) as other:
        assert transport.send(post(liar.url)).status_code == 200
        assert sent.acquire(timeout=10)
        assert [transport.send(post(other.url)).status_code for _ in range(3)] == [200] * 3


ROWS: dict[str, dict[str, Any]] = {
    "url-of-a-file": {"url": "file:///etc/passwd"},
    "url-of-another-protocol": {"url": "gopher://127.0.0.1:6379/_FLUSHALL"},
    "url-of-metadata": {"url": "http://169.254.169.254/"},
    "url-with-a-line-break": {"url": "http://127.0.0.1/\r\nX-Injected: 1"},
    "url-empty": {"url": ""},
    "header-with-a-line-break": {"headers": {"X-A": "b\r\nX-Injected: 1"}},
    "header-name-with-a-line-break": {"headers": {"X-A: b\r\nX-Injected": "1"}},
    "header-beyond-ascii": {"headers": {"X-A": "ü"}},
    "headers-in-a-list": {"headers": ["X-A: b"]},
    "headers-in-a-text": {"headers": "X-A: b"},
}


@IN_THE_DATABASE
@pytest.mark.parametrize("fields", ROWS.values(), ids=ROWS)
def test_a_row_that_came_past_the_validation_is_sent_nowhere(
    send: Callable[..., None], fields: dict[str, Any]
) -> None:
    """Raw SQL, an old release, a restored dump: the transport asks again."""
    with receiver(hostile.answers(OK)) as server:
        subscription = make_subscription(url=server.url)
        Subscription.objects.filter(pk=subscription.pk).update(**fields)
        publish("test.attack", {"a": 1})
        send(subscription)
        assert server.connections == 0
    delivery = Delivery.objects.get(subscription=subscription)
    assert delivery.status == "pending", "an operator can repair it, and the delivery goes out"
    # What cannot even be signed is no attempt; the lane says why it waits.
    errors = [Lane.objects.get().backoff_reason, *Attempt.objects.values_list("error", flat=True)]
    assert any(errors)
    assert not Attempt.objects.exclude(status_code=None).exists()


@IN_THE_DATABASE
def test_the_senders_own_headers_win_over_those_of_a_row(send: Callable[..., None]) -> None:
    seen: list[bytes] = []

    def behave(connection: Connection) -> None:
        seen.append(connection.read_request().lower())
        connection.send(OK)

    with receiver(behave) as server:
        subscription = make_subscription(url=server.url)
        forged = {
            "Webhook-Id": "forged", "WEBHOOK-SIGNATURE": "v1,forged", "webhook-timestamp": "0",
            "x-webhook-signature": "sha256=forged", "Content-Type": "text/forged",
            "Content-Length": "0", "Transfer-Encoding": "chunked", "Expect": "100-continue",
        }  # fmt: skip
        Subscription.objects.filter(pk=subscription.pk).update(headers=forged)
        publish("test.attack", {"a": 1}, event_id="genuine")
        send(subscription)
    head = seen[0].partition(b"\r\n\r\n")[0]
    assert b"forged" not in head
    assert head.count(b"\r\nwebhook-id: genuine") == 1
    assert head.count(b"\r\nwebhook-signature: v1,") == 1
    assert head.count(b"content-length:") == 1
    assert b"transfer-encoding" not in head
    assert b"expect:" not in head
