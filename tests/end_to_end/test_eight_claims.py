"""What this project promises, with a real worker, a real broker and a real receiver."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connection

from deliveries import publish
from deliveries.models import Attempt, Delivery
from subscriptions.models import Subscription
from tests.end_to_end.conftest import TIMEOUT, Workers, eventually
from tests.factories import make_subscription_with_secret, statuses
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]


class Switch:
    """What a receiver answers, to be changed while it runs."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: dict[str, str] = {}

    def __call__(self, received: Received) -> Answer:
        return Answer(self.status, headers=self.headers)


@pytest.fixture
def switch() -> Switch:
    return Switch()


@pytest.fixture
def receiver(switch: Switch) -> Iterator[Receiver]:
    with Receiver(respond=switch) as running:
        yield running


def subscribe(receiver: Receiver, *patterns: str, **fields: Any) -> tuple[Subscription, str]:
    return make_subscription_with_secret(
        url=receiver.url, topic_patterns=list(patterns or ["order.*"]), **fields
    )


def test_a_matching_event_produces_one_signed_post(workers: Workers, receiver: Receiver) -> None:
    subscription, secret = subscribe(receiver, headers={"X-Team": "blue"})
    workers.worker()
    event = publish("order.created", {"id": 42, "name": "Zoë"}, event_type="created")
    assert receiver.wait_for(1, TIMEOUT)
    eventually(lambda: statuses(subscription) == {"succeeded": 1}, "the delivery being settled")
    [received] = receiver.received
    assert received.body == event.body
    assert json.loads(received.body)["payload"] == {"id": 42, "name": "Zoë"}
    headers = {name.lower(): value for name, value in received.headers.items()}
    assert headers["x-webhook-event-topic"] == "order.created"
    assert headers["x-webhook-event-id"] == headers["webhook-id"] == event.id
    assert headers["content-type"] == "application/json"
    assert headers["x-team"] == "blue"
    expected = hmac.new(secret.encode(), received.body, hashlib.sha256).hexdigest()
    assert headers["x-webhook-signature"] == f"sha256={expected}"
    [attempt] = Attempt.objects.all()
    assert (attempt.outcome, attempt.status_code, attempt.number) == ("success", 200, 1)
    assert attempt.remote_address.startswith("127.0.0.1")


def test_both_independent_libraries_accept_the_signature(
    workers: Workers, receiver: Receiver
) -> None:
    import standardwebhooks
    import svix

    subscription, old = subscribe(receiver)
    new = subscription.rotate_secret()
    workers.worker()
    publish("order.created", {"id": 1})
    assert receiver.wait_for(1, TIMEOUT)
    [received] = receiver.received
    for secret in (old, new):
        for library in (standardwebhooks.Webhook, svix.Webhook):
            library(secret).verify(received.body, dict(received.headers))
            with pytest.raises(Exception, match=r"[Ss]ignature"):
                library(secret).verify(received.body + b" ", dict(received.headers))


def test_an_event_outside_the_patterns_produces_nothing(
    workers: Workers, receiver: Receiver
) -> None:
    subscribe(receiver, "order.*")
    workers.worker()
    publish("order", {})
    publish("order.line.added", {})
    publish("invoice.created", {})
    publish("order.last", {})
    assert receiver.wait_for(lambda seen: any(one.topic == "order.last" for one in seen), TIMEOUT)
    assert [one.topic for one in receiver.received] == ["order.last"]
    assert Delivery.objects.count() == 1


def test_a_503_is_retried_with_growing_delays_and_recorded_as_one_failure(
    workers: Workers, receiver: Receiver, switch: Switch
) -> None:
    switch.status = 503
    subscription, _ = subscribe(receiver)
    planned = (0.2, 0.8, 2.4)
    workers.worker(quick_retries=",".join(map(str, planned)))
    publish("order.created", {})
    assert receiver.wait_for(4, TIMEOUT)
    eventually(lambda: Attempt.objects.count() == 4, "four attempts")
    arrivals = [one.at for one in receiver.received]
    delays = [after - before for before, after in itertools.pairwise(arrivals)]
    # Never before its time, which is spread by 20 % either way; each later than the one before.
    assert all(delay >= 0.8 * least for delay, least in zip(delays, planned, strict=True))
    assert delays == sorted(delays)
    assert len({one.id for one in receiver.received}) == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1
    assert subscription.state == "active"
    assert subscription.last_error.startswith("503")
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.attempt_count) == ("pending", 4)
    assert delivery.next_attempt_at is not None


def test_two_failed_deliveries_trip_at_a_threshold_of_two_and_stop_the_traffic(
    workers: Workers, receiver: Receiver, switch: Switch
) -> None:
    switch.status = 500
    subscription, _ = subscribe(receiver)
    workers.worker(circuit_threshold="2")
    publish("order.first", {})
    publish("order.second", {})
    eventually(lambda: reload(subscription).state == "tripped", "the trip")
    eventually(lambda: statuses(subscription) == {"held": 2}, "both being held")
    subscription.refresh_from_db()
    assert not subscription.enabled
    assert subscription.auto_disabled_at is not None
    assert subscription.consecutive_failures == 2
    assert len(receiver.received) == 8
    publish("order.third", {})
    other, _ = subscribe(receiver, "order.other")
    publish("order.other", {})
    eventually(lambda: len(statuses(other)) == 1, "the other subscription's delivery")
    assert statuses(subscription) == {"held": 4}
    assert {one.topic for one in receiver.received[8:]} <= {"order.other"}


def reload(subscription: Subscription) -> Subscription:
    subscription.refresh_from_db()
    return subscription


def test_a_subscription_made_or_changed_is_honoured_by_the_very_next_event(
    workers: Workers, receiver: Receiver
) -> None:
    workers.worker()
    with Receiver() as elsewhere:
        subscription, _ = subscribe(receiver, "order.created")
        publish("order.created", {"n": 1})
        assert receiver.wait_for(1, TIMEOUT)
        subscription.topic_patterns = ["order.shipped"]
        subscription.save()
        publish("order.created", {"n": 2})
        publish("order.shipped", {"n": 3})
        assert receiver.wait_for(2, TIMEOUT)
        subscription.url = elsewhere.url
        secret = subscription.rotate_secret(overlap=0)
        subscription.save()
        publish("order.shipped", {"n": 4})
        assert elsewhere.wait_for(1, TIMEOUT)
        eventually(lambda: statuses(subscription) == {"succeeded": 3}, "three deliveries")
        assert [json.loads(one.body)["payload"]["n"] for one in receiver.received] == [1, 3]
        [last] = elsewhere.received
        expected = hmac.new(secret.encode(), last.body, hashlib.sha256).hexdigest()
        headers = {name.lower(): value for name, value in last.headers.items()}
        assert headers["x-webhook-signature"] == f"sha256={expected}"
        assert len(headers["webhook-signature"].split()) == 1


def test_enabling_again_clears_the_circuit_and_sends_what_was_held(
    workers: Workers, receiver: Receiver, switch: Switch
) -> None:
    switch.status = 500
    subscription, _ = subscribe(receiver)
    workers.worker(circuit_threshold="1")
    events = [publish("order.created", {"n": n}) for n in range(20)]
    eventually(lambda: reload(subscription).state == "tripped", "the trip")
    events += [publish("order.created", {"n": n}) for n in range(20, 30)]
    eventually(lambda: statuses(subscription) == {"held": 30}, "all being held")
    switch.status = 200
    before = len(receiver.received)
    subscription.enabled = True
    subscription.save()
    assert subscription.state == "active"
    assert subscription.auto_disabled_at is None
    assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
    eventually(lambda: statuses(subscription) == {"succeeded": 30}, "all being delivered")
    assert sorted(one.id for one in receiver.received[before:]) == sorted(one.id for one in events)


def test_pausing_and_resuming_is_harmless(workers: Workers, receiver: Receiver) -> None:
    subscription, _ = subscribe(receiver)
    workers.worker()
    publish("order.before", {})
    assert receiver.wait_for(1, TIMEOUT)
    eventually(lambda: statuses(subscription) == {"succeeded": 1}, "the first delivery")
    subscription.refresh_from_db()
    for enabled in (False, True):
        subscription.enabled = enabled
        subscription.save()
        assert subscription.auto_disabled_at is None
        assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
        if not enabled:
            assert subscription.state == "paused"
            publish("order.meanwhile", {})
    publish("order.after", {})
    assert receiver.wait_for(2, TIMEOUT)
    eventually(lambda: statuses(subscription) == {"succeeded": 2}, "the last delivery")
    assert [one.topic for one in receiver.received] == ["order.before", "order.after"]


def test_bad_stored_patterns_disable_nothing_but_themselves(
    workers: Workers, receiver: Receiver
) -> None:
    good, _ = subscribe(receiver, "order.*")
    mixed, _ = subscribe(receiver, "order.*")
    update = "UPDATE subscriptions_subscription SET topic_patterns = %s WHERE id = %s"
    with connection.cursor() as cursor:
        cursor.execute(update, ['["a..b", "order.>", 7, "**"]', mixed.pk])
        with pytest.raises(IntegrityError):
            cursor.execute(update, ['{"not": "a list"}', good.pk])
    workers.worker()
    publish("order.created", {})
    assert receiver.wait_for(2, TIMEOUT)
    eventually(lambda: statuses(good) == statuses(mixed) == {"succeeded": 1}, "both good ones")
