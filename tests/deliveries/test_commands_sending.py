"""`send_test`, over real sockets."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.views.debug import ExceptionReporter

from deliveries.models import Attempt, Delivery, Event
from deliveries.sending import send_test as module
from deliveries.sending.send_test import send_test, send_tests
from deliveries.transport import Transport
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription_with_secret
from tests.subscriptions.test_commands import trip
from webhooks_project.receiver import Answer, Receiver

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


@pytest.fixture
def transport(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Transport]:
    """A transport that may reach the test's receivers, and gives up soon."""
    configure(allowed_networks=LOOPBACK)
    made = Transport(timeout=1, allowed_networks=LOOPBACK)
    monkeypatch.setattr(module, "transport", lambda: made)
    yield made
    made.close(1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def subscription(db: None, transport: Transport, receiver: Receiver) -> Subscription:
    made, secret = make_subscription_with_secret(
        name="billing", url=f"{receiver.url}hook", headers={"X-Team": "blue"}
    )
    receiver.add_secret(secret)
    return made


def test_a_test_event_is_signed_and_leaves_no_trace(
    subscription: Subscription, receiver: Receiver
) -> None:
    before = Subscription.objects.values().get()
    answer = run_json("send_test", "billing")
    [received] = receiver.received
    assert (received.topic, received.verified) == ("webhooks.test", True)
    assert received.header("X-Team") == "blue"
    body = json.loads(received.body)
    assert (body["id"], body["topic"], body["type"]) == (received.id, "webhooks.test", "test")
    assert (answer["succeeded"], answer["status_code"]) == (True, 200)
    assert answer["event_id"] == received.id
    assert Subscription.objects.values().get() == before
    for model in (Event, Delivery, Attempt):
        assert not model.objects.exists()


@pytest.mark.parametrize("stop", [trip, lambda one: circuit.pause([one.pk])])
def test_a_stopped_subscription_can_be_tried_and_stays_stopped(
    subscription: Subscription, receiver: Receiver, stop: Callable[[Subscription], object]
) -> None:
    stop(subscription)
    before = Subscription.objects.values().get()
    assert "answered 200" in run("send_test", str(subscription.pk), "--topic", "order.created")
    assert receiver.received[0].topic == "order.created"
    assert Subscription.objects.values().get() == before


def test_what_the_receiver_says_is_shown_harmless(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver(respond=lambda _: Answer(422, b"no \x1b[31mfield\n`x`")) as picky:
        Subscription.objects.update(url=picky.url)
        message = refusal("send_test", "billing")
    assert message.startswith("billing: answered 422 in ")
    assert message.endswith(" ms: no ␛[31mfield `x`")


def test_a_test_event_is_sent_once_and_never_again(
    subscription: Subscription, receiver: Receiver
) -> None:
    with Receiver(respond=lambda _: Answer(503)) as failing:
        Subscription.objects.update(url=failing.url)
        assert refusal("send_test", "billing")
        assert failing.count == 1


def test_silence_ends_at_the_deadline(subscription: Subscription, receiver: Receiver) -> None:
    receiver.pause()
    assert "no answer within 1 s" in refusal("send_test", "billing")


def test_a_dead_receiver_is_said_to_be_dead(subscription: Subscription, receiver: Receiver) -> None:
    receiver.stop()
    assert refusal("send_test", "billing") == "billing: connection refused"


def test_a_forbidden_address_is_not_dialled(
    subscription: Subscription, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = Transport(timeout=1, allowed_networks=())
    monkeypatch.setattr(module, "transport", lambda: strict)
    assert "loopback" in refusal("send_test", "billing")
    strict.close(0)
    assert receiver.count == 0


def test_nothing_unsigned_is_sent(
    subscription: Subscription, receiver: Receiver, configure: Callable[..., None]
) -> None:
    configure(secret_keys=("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",))
    assert "cannot be decrypted" in refusal("send_test", "billing")
    subscription.secrets.all().delete()
    assert "no signing secret" in refusal("send_test", "billing")
    assert receiver.count == 0


def test_a_wrong_topic_or_name_is_refused(subscription: Subscription, receiver: Receiver) -> None:
    assert "'a..b'" in refusal("send_test", "billing", "--topic", "a..b", code=2)
    assert "'nobody'" in refusal("send_test", "nobody")
    assert receiver.count == 0


def test_many_are_tried_at_the_same_time(subscription: Subscription) -> None:
    """Each answer comes only when all the requests are there."""
    with Receiver(respond=lambda _: Answer(delay=0.3)) as slow:
        Subscription.objects.update(url=slow.url)
        subscription.refresh_from_db()
        results = send_tests([subscription] * 8)
        arrivals = [one.at for one in slow.received]
    assert all(one.succeeded for one in results)
    assert max(arrivals) - min(arrivals) < 0.3


def test_a_transport_that_is_closed_is_an_answer_too(
    subscription: Subscription, transport: Transport
) -> None:
    transport.close(0)
    tested = send_test(subscription)
    assert not tested.succeeded
    assert "shutting down" in str(tested)


def test_a_test_event_carries_no_header_that_deliveries_do_not(
    subscription: Subscription, receiver: Receiver
) -> None:
    headers = {"Host": "elsewhere.example", "Cookie": "a=b", "X-Team": "blue"}
    Subscription.objects.update(headers=headers)
    run("send_test", "billing")
    sent = {name.lower(): text for name, text in receiver.received[0].headers.items()}
    assert sent["x-team"] == "blue"
    assert "cookie" not in sent
    assert sent["host"] != "elsewhere.example"


def test_headers_that_are_a_list_are_said_to_be_wrong(
    subscription: Subscription, receiver: Receiver
) -> None:
    Subscription.objects.update(headers=[1, 2])
    assert "headers are not a JSON object" in refusal("send_test", "billing")
    assert receiver.count == 0


def test_an_answer_that_cannot_be_judged_ends_the_wait(
    subscription: Subscription, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(module, "judge_response", fail)
    assert "an error of the sender itself" in refusal("send_test", "billing")


def test_no_error_report_shows_a_secret_of_a_test_event(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch, rf: Any
) -> None:
    def fail(*_: Any, **given: Any) -> None:
        raise RuntimeError("a mistake of ours")

    reports: list[str] = []

    def report(_: Any, what: str, error: Exception) -> None:
        reporter = ExceptionReporter(rf.get("/"), type(error), error, error.__traceback__)
        reports.append(reporter.get_traceback_text() + reporter.get_traceback_html())

    monkeypatch.setattr("deliveries.sending.signing.headers", fail)
    monkeypatch.setattr(module._Test, "_fail", report)
    module._Test(subscription, "test.one")
    (text,) = reports
    assert "a mistake of ours" in text
    assert "whsec_" not in text
