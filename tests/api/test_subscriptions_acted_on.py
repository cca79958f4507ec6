"""Test events, rotation and reset."""

from __future__ import annotations

import ipaddress
import socketserver
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from django.views.debug import ExceptionReporter

from api.v1 import subscription_actions
from deliveries import publish
from deliveries.models import Delivery, Event, Lane
from deliveries.sending import send_test as sending
from deliveries.transport import Transport
from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.secrets import crypto, signing_secrets
from tests.api.calls import Caller
from tests.api.subscriptions import NEW, URL, act, caller, pointers, problem
from tests.factories import make_subscription, make_subscription_with_secret, statuses
from tests.subscriptions.test_commands import trip
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)

AtOnce = Callable[..., list[Any]]
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture
def subscription() -> Subscription:
    return make_subscription(**NEW)


# Test events.


@pytest.fixture
def transport(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Transport]:
    configure(allowed_networks=LOOPBACK)
    made = Transport(timeout=5, allowed_networks=LOOPBACK)
    monkeypatch.setattr(sending, "transport", lambda: made)
    yield made
    made.close(1)


def test_a_test_event_says_what_the_receiver_said(transport: Transport) -> None:
    with Receiver(respond=lambda _: Answer(422, b"no such field")) as receiver:
        one, secret = make_subscription_with_secret(url=receiver.url)
        receiver.add_secret(secret)
        response = act(caller(), one, "test")
        [received] = receiver.received
    assert response.status_code == 200
    said = response.data
    assert (said["succeeded"], said["status_code"]) == (False, 422)
    assert said["response_body"] == "no such field"
    assert said["remote_address"].startswith("127.0.0.1")
    assert (received.id, received.topic, received.verified) == (
        said["event_id"], "webhooks.test", True,
    )  # fmt: skip
    assert not Event.objects.exists()


def test_a_test_event_may_have_any_topic_and_go_to_a_paused_one(transport: Transport) -> None:
    with Receiver() as receiver:
        one = make_subscription(url=receiver.url)
        circuit.pause([one.pk])
        assert act(caller(), one, "test", {"topic": "order.created"}).data["succeeded"]
        assert receiver.received[0].topic == "order.created"


def test_a_receiver_that_is_away_is_an_answer_too(transport: Transport) -> None:
    with Receiver() as receiver:
        one = make_subscription(url=receiver.url)
    response = act(caller(), one, "test")
    assert response.status_code == 200
    assert (response.data["status_code"], response.data["error"]) == (None, "connection refused")


@pytest.mark.parametrize("topic", ["a..b", "a.*", "", "a\0", 5, None])
def test_a_test_event_with_a_wrong_topic_is_422(subscription: Subscription, topic: Any) -> None:
    assert pointers(act(caller(), subscription, "test", {"topic": topic})) == ["/topic"]


class _Waiting(socketserver.StreamRequestHandler):
    """Answers each request when the test says so."""

    arrived = threading.Semaphore(0)
    go_on = threading.Event()

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.arrived.release()
        self.go_on.wait(30)
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def _used_connections() -> int:
    stats = connection.pool.get_stats()
    used: int = stats["pool_size"] - stats["pool_available"]
    return used


def _test_in_a_thread(key: str, subscription: Subscription) -> Any:
    try:
        return act(Caller(key_text=key), subscription, "test")
    finally:
        connection.close()


def test_tests_that_wait_hold_no_connection_and_are_limited_in_number(
    transport: Transport,
) -> None:
    limit = subscription_actions.MAX_TESTS_AT_ONCE
    key = caller().key
    with (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Waiting) as server,
        ThreadPoolExecutor(limit) as pool,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        one, other, third = (
            make_subscription(name=tenant, url=url, tenant=tenant) for tenant in ("a", "b", "c")
        )
        tests = [
            pool.submit(_test_in_a_thread, key, one)
            for _ in range(subscription_actions.MAX_TESTS_OF_A_TENANT)
        ]
        try:
            assert all(_Waiting.arrived.acquire(timeout=20) for _ in tests)
            refused = act(Caller(key_text=key), one, "test")
            problem(refused, 429, "too-many-tests")
            # Which leaves places for others.
            more = [pool.submit(_test_in_a_thread, key, other) for _ in range(limit - len(tests))]
            assert all(_Waiting.arrived.acquire(timeout=20) for _ in more)
            tests += more
            # The pool looks at what it gets back in a thread of its own.
            eventually(lambda: _used_connections() == 1)
            refused = act(Caller(key_text=key), third, "test")
            problem(refused, 429, "too-many-tests")
            assert refused["Retry-After"] == "1"
            assert act(Caller(key_text=key), one, "reset").status_code == 200
        finally:
            _Waiting.go_on.set()
        assert [test.result(20).data["succeeded"] for test in tests] == [True] * limit
        assert act(Caller(key_text=key), one, "test").data["succeeded"]
        assert not subscription_actions._tests, "no tenant that has none is remembered"
        server.shutdown()


# Rotation.


def stored(subscription: Subscription) -> list[str]:
    return [crypto.decrypt(one.ciphertext).decode() for one in subscription.secrets.live()]


def test_rotating_shows_the_new_secret_once_and_lets_the_old_one_end(
    subscription: Subscription,
) -> None:
    [old] = stored(subscription)
    client = caller()
    response = act(client, subscription, "rotate-secret", {"overlap": 3600})
    assert response.status_code == 200
    assert response["Cache-Control"] == "no-store"
    assert stored(subscription) == [response.data["secret"], old]
    ends = datetime.fromisoformat(response.data["old_secrets_end_at"])
    assert abs((ends - datetime.now(UTC)).total_seconds() - 3600) < 30
    assert b"whsec_" not in client.call("GET", f"{URL}/{subscription.pk}").content


def test_a_secret_that_has_leaked_ends_at_once(subscription: Subscription) -> None:
    response = act(caller(), subscription, "rotate-secret", {"overlap": 0})
    assert stored(subscription) == [response.data["secret"]]


def test_the_overlap_is_the_settings_unless_given(
    subscription: Subscription, configure: Callable[..., None]
) -> None:
    configure(secret_overlap=60.0)
    ends = act(caller(), subscription, "rotate-secret").data["old_secrets_end_at"]
    assert datetime.fromisoformat(ends) - datetime.now(UTC) < timedelta(seconds=61)


def test_a_secret_of_ones_own_is_taken_and_not_repeated(subscription: Subscription) -> None:
    given = signing_secrets.generate()
    response = act(caller(), subscription, "rotate-secret", {"secret": given, "overlap": 0})
    assert response.data["secret"] is None
    assert stored(subscription) == [given]
    subscription.secrets.all().delete()
    assert act(caller(), subscription, "rotate-secret").data["old_secrets_end_at"] is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"overlap": -1}, "/overlap"),
        ({"overlap": 10**9}, "/overlap"),
        ({"overlap": True}, "/overlap"),
        ({"overlap": "60"}, "/overlap"),
        ({"overlap": None}, "/overlap"),
        ({"secret": "whsec_Canary"}, "/secret"),
        ({"secrets": "Canary"}, "/secrets"),
    ],
)
def test_a_wrong_rotation_is_422_and_changes_nothing(
    subscription: Subscription, body: Any, place: str
) -> None:
    before = stored(subscription)
    response = act(caller(), subscription, "rotate-secret", body)
    assert pointers(response) == [place]
    assert b"Canary" not in response.content
    assert stored(subscription) == before


def test_more_secrets_in_force_than_receivers_take_are_409(subscription: Subscription) -> None:
    for _ in range(9):
        assert act(caller(), subscription, "rotate-secret").status_code == 200
    response = act(caller(), subscription, "rotate-secret")
    assert response.status_code == 409
    assert response.data["type"] == "/api/problems#too-many-secrets"
    assert "overlap of 0" in response.data["detail"]
    assert len(stored(subscription)) == 10
    assert act(caller(), subscription, "rotate-secret", {"overlap": 0}).status_code == 200


def test_of_rotations_at_once_one_secret_is_left_without_an_end(
    subscription: Subscription, at_once: AtOnce
) -> None:
    key = caller().key
    answers = at_once(lambda _: act(Caller(key_text=key), subscription, "rotate-secret"), 6)
    assert {answer.status_code for answer in answers} == {200}
    assert len(stored(subscription)) == 7
    [last] = subscription.secrets.filter(expires_at=None)
    assert crypto.decrypt(last.ciphertext).decode() in {a.data["secret"] for a in answers}


def test_no_error_report_shows_a_secret(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch, rf: Any
) -> None:
    reports: list[str] = []

    def report(error: Exception) -> Any:
        reporter = ExceptionReporter(rf.get("/"), type(error), error, error.__traceback__)
        reports.append(reporter.get_traceback_text() + reporter.get_traceback_html())
        return original(error)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a mistake of ours")

    from api import problems

    original = problems.from_exception
    monkeypatch.setattr(problems, "from_exception", report)
    monkeypatch.setattr(subscription_actions, "RotatedSecret", fail)
    monkeypatch.setattr("api.v1.subscriptions.MadeSubscription", fail)
    given = signing_secrets.generate()
    client = caller()
    for body in ({}, {"secret": given}):
        assert act(client, subscription, "rotate-secret", body).status_code == 500
        made = client.call("POST", URL, {**NEW, "name": f"n{len(reports)}", **body})
        assert made.status_code == 500
    assert len(reports) == 4
    for text in reports:
        assert "a mistake of ours" in text
        assert "whsec_" not in text
        assert client.key not in text


# Reset.


@pytest.mark.parametrize(
    ("body", "becomes"), [(None, "pending"), ({"held": "send"}, "pending"),
                          ({"held": "discard"}, "discarded")],
)  # fmt: skip
@pytest.mark.parametrize("stop", [trip, lambda one: circuit.pause([one.pk])])
def test_a_reset_says_what_becomes_of_what_was_held(
    subscription: Subscription, stop: Callable[[Subscription], Any], body: Any, becomes: str
) -> None:
    publish("order.created", {})
    stop(subscription)
    Delivery.objects.update(status="held", next_attempt_at=None, held_at=timezone.now())
    response = act(caller(), subscription, "reset", body)
    assert response.status_code == 200
    assert (response.data["state"], response.data["last_error"]) == ("active", "")
    assert statuses(subscription) == {becomes: 1}
    again = act(caller(), subscription, "reset", body)
    assert (again.status_code, again["ETag"]) == (200, response["ETag"])


def test_a_reset_ends_a_backoff(subscription: Subscription) -> None:
    Lane.objects.create(
        subscription=subscription, failures=3, resume_at=timezone.now() + timedelta(hours=1)
    )
    assert act(caller(), subscription, "reset").status_code == 200
    assert Lane.objects.get().resume_at is None


def test_a_reset_of_what_has_changed_meanwhile_does_nothing(subscription: Subscription) -> None:
    trip(subscription)
    client = caller()
    old = client.call("GET", f"{URL}/{subscription.pk}")["ETag"]
    circuit.pause([subscription.pk])
    response = client.call("POST", f"{URL}/{subscription.pk}/reset", If_Match=old)
    problem(response, 412, "changed-meanwhile")
    assert Subscription.objects.get().state == "paused"


@pytest.mark.parametrize("body", [{"held": "keep"}, {"held": None}, {"held": True}])
def test_a_wrong_reset_is_422(subscription: Subscription, body: Any) -> None:
    trip(subscription)
    assert pointers(act(caller(), subscription, "reset", body)) == ["/held"]
    assert Subscription.objects.get().state == "tripped"
