"""A circuit that trips, and the probes that close it again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deliveries import publish
from deliveries.keeping.sweep import sweep
from deliveries.models import Delivery
from deliveries.sending.sender import Sender
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.deliveries.conftest import Script
from tests.deliveries.sending import (
    Send,
    publish_numbered,
    tripped,
)
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_gone_trips_at_once_and_holds_the_rest(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(5)
    script.always = Answer(410)
    send(subscription)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert statuses(subscription) == {"failed": 1, "held": 4}
    assert len(receiver.received) == 1


def test_a_probe_that_succeeds_closes_the_circuit(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = tripped(send, receiver, script)
    held = Delivery.objects.filter(status="held").count()
    script.always = None
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before, "nothing before the probe is due"
    Subscription.objects.update(next_probe_at=timezone.now())
    assert sweep().probes == 1
    send(subscription)
    subscription.refresh_from_db()
    assert subscription.state == "active"
    assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
    send(subscription)
    assert Delivery.objects.filter(status="succeeded").count() == held
    oldest = Delivery.objects.order_by("id").exclude(status="failed").first()
    assert oldest is not None
    assert receiver.received[before].id == oldest.event_id


def test_a_probe_that_fails_leaves_all_as_it_was_and_comes_later(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    script.always = Answer(500)
    Subscription.objects.update(next_probe_at=timezone.now())
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before + 1
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert subscription.probe_count == 1
    assert subscription.next_probe_at is not None
    assert subscription.next_probe_at > timezone.now() + timedelta(seconds=500)
    assert statuses(subscription) == {"failed": 5, "held": 3}


def test_a_manual_circuit_is_never_probed(send: Send, receiver: Receiver, script: Script) -> None:
    subscription = tripped(send, receiver, script)
    Subscription.objects.update(next_probe_at=None, recovery="manual")
    assert sweep().probes == 0
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before


def test_a_failed_probe_never_costs_the_delivery_that_it_probes_with(
    send: Send, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    configure(slow_retries=())
    subscription = tripped(send, receiver, script)
    script.always = Answer(503)
    Delivery.objects.filter(status="held").update(retries_used=3)
    for _ in range(3):
        Subscription.objects.update(next_probe_at=timezone.now())
        send(subscription)
    assert statuses(subscription) == {"failed": 5, "held": 3}


def test_a_probe_in_flight_does_not_enable_what_an_operator_paused(
    sender: Sender, send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = tripped(send, receiver, script)
    script.always = Answer(200)
    Subscription.objects.update(next_probe_at=timezone.now())
    receiver.pause()
    thread = threading.Thread(
        target=sender.serve, args=([subscription.pk],), kwargs={"recovering": True}
    )
    thread.start()
    waiting = threading.Event()
    while not Delivery.objects.exclude(lease_until=None).exists():
        assert not waiting.wait(0.01)
    circuit.pause([subscription.pk])
    receiver.start()
    thread.join(20)
    subscription.refresh_from_db()
    assert subscription.state == "paused"
    assert statuses(subscription) == {"failed": 5, "succeeded": 1, "held": 2}


def test_manual_recovery_holds_for_what_is_tripped_already(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    subscription.recovery = "manual"
    subscription.save()
    assert subscription.next_probe_at is None
    subscription.recovery = "automatic"
    subscription.save()
    assert subscription.next_probe_at is not None


def test_a_slow_receiver_of_the_signal_holds_up_nobody(
    send: Send, receiver: Receiver, script: Script
) -> None:
    from subscriptions.signals import circuit_tripped

    begun, go_on = threading.Event(), threading.Event()

    def slow(**_: Any) -> None:
        begun.set()
        go_on.wait(20)

    circuit_tripped.connect(slow)
    try:
        tripped(send, receiver, script)
        assert begun.wait(20)
        script.always = None
        other = make_subscription(url=receiver.url, topic_patterns=["other"])
        publish("other", {})
        send(other)
        assert statuses(other) == {"succeeded": 1}
    finally:
        go_on.set()
        circuit_tripped.disconnect(slow)
