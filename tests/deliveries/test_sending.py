"""What becomes of deliveries: claimed, sent, settled, in one process, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deliveries import publish
from deliveries.keeping.housekeeping import prune
from deliveries.models import Attempt, Delivery, Event, Lane
from deliveries.sending.sender import Sender
from subscriptions.models import SigningSecret
from tests.deliveries.conftest import Script
from tests.deliveries.sending import (
    Send,
    make_due,
    publish_numbered,
    the_delivery,
)
from tests.deliveries.transport import hostile
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_success_ends_a_delivery(send: Send, receiver: Receiver, script: Script) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.answers = [Answer(201, b"thank you")]
    send(subscription)
    delivery = the_delivery()
    assert delivery.status == "succeeded"
    assert delivery.next_attempt_at is None
    assert delivery.lease_until is None
    assert delivery.finished_at is not None
    attempt = Attempt.objects.get()
    assert (attempt.status_code, attempt.response_body) == (201, "thank you")
    subscription.refresh_from_db()
    assert subscription.last_success_at is not None


def test_a_failure_is_planned_again_and_announced(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    ordered.clear()
    script.answers = [Answer(500, b"no\x00pe\x1b[31m")]
    before = timezone.now()
    send(subscription)
    delivery = the_delivery()
    assert (delivery.status, delivery.attempt_count, delivery.retries_used) == ("pending", 1, 1)
    assert delivery.next_attempt_at is not None
    assert delivery.next_attempt_at >= before + timedelta(seconds=0.9)
    assert ordered == [(subscription.pk, "recover", pytest.approx(1.05))]
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.status_code) == ("http", 500)
    assert "\x00" not in attempt.response_body
    assert "\x1b" not in attempt.response_body
    assert attempt.response_body.startswith("no")


def test_four_quick_failures_are_one_failure_for_the_circuit(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.always = Answer(503)
    counts = []
    for _ in range(4):
        send(subscription)
        subscription.refresh_from_db()
        counts.append(subscription.consecutive_failures)
        make_due()
    assert counts == [0, 0, 0, 1]
    assert the_delivery().attempt_count == 4


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404])
def test_a_final_answer_fails_the_delivery_at_once_and_counts(
    send: Send, receiver: Receiver, script: Script, status: int
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.always = Answer(status, headers={"Location": receiver.url})
    send(subscription)
    delivery = the_delivery()
    assert (delivery.status, delivery.attempt_count) == ("failed", 1)
    assert delivery.last_error.startswith(str(status))
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1
    assert len(receiver.received) == 1


def test_a_rate_limit_is_honoured_by_the_whole_lane_and_never_counts(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(3)
    ordered.clear()
    script.always = Answer(429, headers={"Retry-After": "30"})
    send(subscription)
    send(subscription)
    assert len(receiver.received) == 1
    assert ordered == [(subscription.pk, "recover", pytest.approx(30.05))]
    subscription.refresh_from_db()
    assert (subscription.state, subscription.consecutive_failures) == ("active", 0)
    lane = Lane.objects.get()
    assert lane.resume_at is not None
    assert lane.resume_at > timezone.now() + timedelta(seconds=25)


def test_after_one_failure_another_delivery_is_tried_and_a_healthy_receiver_goes_on(
    send: Send, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    configure(quick_retries=(600.0,))  # however slow the machine, not due before the end
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(30)
    script.answers = [Answer(500)]
    send(subscription)
    assert statuses(subscription) == {"pending": 1, "succeeded": 29}
    lane = Lane.objects.get()
    assert (lane.failures, lane.resume_at) == (0, None)


def test_a_dead_receiver_is_asked_twice_and_then_left_in_peace(
    send: Send, receiver: Receiver, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(50)
    receiver.stop()
    send(subscription)
    assert Attempt.objects.count() == 2
    assert {one.outcome for one in Attempt.objects.all()} == {"refused"}
    assert Lane.objects.get().failures == 2
    send(subscription)
    assert Attempt.objects.count() == 2


def test_a_failing_receiver_gets_one_request_at_a_time_the_same_delivery_first(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_numbered(40)
    script.always = Answer(500)
    send(subscription)
    first = len(receiver.received)
    assert first <= 11
    for _ in range(3):
        make_due()
        send(subscription)
    later = [one.id for one in receiver.received[first:]]
    assert len(set(later)) == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1


def test_deliveries_in_the_deliver_queue_pass_a_failing_subscription_on(
    send: Send, receiver: Receiver, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    Lane.objects.create(subscription=subscription, failures=1, window=1)
    ordered.clear()
    send(subscription, recovering=False)
    assert len(receiver.received) == 0
    assert ordered == [(subscription.pk, "recover", 0.0)]


def test_deliveries_that_cannot_be_signed_wait_for_the_right_key_and_hold_up_no_others(
    send: Send, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, healthy = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    secret = SigningSecret.objects.get(subscription=poisoned)
    SigningSecret.objects.filter(pk=secret.pk).update(ciphertext="gAAAAAnonsense")
    publish("test.one", {})
    send(poisoned, healthy)
    assert statuses(healthy) == {"succeeded": 1}
    for _ in range(20):
        make_due()
        send(poisoned)
    delivery = Delivery.objects.get(subscription=poisoned)
    assert (delivery.status, delivery.retries_used) == ("pending", 0)
    assert "secret" in Lane.objects.get(subscription=poisoned).backoff_reason
    assert not Attempt.objects.filter(delivery=delivery).exists()
    assert f"Nothing can be sent to subscription {poisoned.name} ({poisoned.pk})" in caplog.text
    poisoned.refresh_from_db()
    assert (poisoned.state, poisoned.consecutive_failures) == ("active", 0)
    SigningSecret.objects.filter(pk=secret.pk).update(ciphertext=secret.ciphertext)
    make_due()
    send(poisoned)
    assert statuses(poisoned) == {"succeeded": 1}


def test_a_subscription_without_a_secret_sends_nothing_unsigned(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    subscription.secrets.all().delete()
    publish("test.one", {})
    for _ in range(4):
        send(subscription)
        make_due()
    assert len(receiver.received) == 0
    assert statuses(subscription) == {"pending": 1}
    subscription.add_secret()
    send(subscription)
    assert statuses(subscription) == {"succeeded": 1}


def test_an_id_that_was_removed_and_published_again_sends_the_new_body(
    send: Send, receiver: Receiver, configure: Callable[..., None]
) -> None:
    subscription = make_subscription(url=receiver.url)
    configure(keep_succeeded_days=10 / 86400)
    publish("test.one", {"n": 1}, event_id="again")
    send(subscription)
    Delivery.objects.update(finished_at=timezone.now() - timedelta(seconds=11))
    Event.objects.update(created_at=timezone.now() - timedelta(seconds=11))
    assert prune() == (1, 1)
    publish("test.one", {"n": 2}, event_id="again")
    send(subscription)
    assert [json.loads(one.body)["payload"]["n"] for one in receiver.received] == [1, 2]


def test_a_delivery_whose_event_is_gone_ends_visibly(send: Send, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    publish("test.two", {})
    Event.objects.filter(topic="test.one").delete()
    send(subscription)
    assert statuses(subscription) == {"failed": 1, "succeeded": 1}


def test_a_forbidden_address_is_not_dialled(
    ordered: list[Any], configure: Callable[..., None], receiver: Receiver, sender: Sender
) -> None:
    from deliveries.transport import Transport

    strict = Sender(Transport(timeout=2.0, allowed_networks=()))
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    strict.serve([subscription.pk], recovering=True)
    assert len(receiver.received) == 0
    attempt = Attempt.objects.get()
    assert attempt.outcome == "blocked"
    assert "loopback" in attempt.error
    strict.close()


def test_a_new_url_ends_the_rest_that_the_old_receiver_asked_for(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(3)
    script.answers = [Answer(429, headers={"Retry-After": "86400"})]
    send(subscription)
    with Receiver() as elsewhere:
        subscription.url = elsewhere.url
        subscription.save()
        send(subscription)
        assert len(elsewhere.received) == 2


def test_no_connection_is_shared_between_tenants(send: Send) -> None:
    """What a receiver says unasked, after an answer, could be taken for the next one's."""
    with hostile.receiver(hostile.answers(hostile.OK)) as server:
        subscriptions = [
            make_subscription(url=server.url, tenant=tenant) for tenant in ("acme", "acme", "bolt")
        ]
        for tenant in ("acme", "bolt"):
            publish("test.one", {}, tenant=tenant)
        for subscription in subscriptions:
            send(subscription)
        assert server.connections == 2
    assert not Delivery.objects.exclude(status="succeeded").exists()


def test_events_go_out_in_the_order_in_which_they_were_published(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(10)
    send(subscription)
    assert [json.loads(one.body)["payload"]["n"] for one in receiver.received] == list(range(10))


def test_no_secret_is_in_a_repr(sender: Sender, receiver: Receiver) -> None:
    import uuid

    from deliveries.claiming.claimer import _decrypt
    from deliveries.claiming.claims import claim
    from deliveries.claiming.memory import BodyMemory

    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    found = claim(
        [subscription.pk], BodyMemory(2**20), _decrypt, token=uuid.uuid4(), failing_too=True
    )
    assert found.lanes[0].secrets[0].startswith("whsec_")
    assert "whsec_" not in repr(found)
