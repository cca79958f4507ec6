"""A reset ends the backoff of a subscription that is active."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from deliveries import publish
from deliveries.models import Lane
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.commands import run, run_json
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def backing_off(receiver: Receiver, script: Script, send: Callable[..., None]) -> Subscription:
    """Its receiver has asked for an hour, and another event has come since."""
    script.answers = [Answer(429, headers={"Retry-After": "3600"})]
    subscription = make_subscription(name="billing", url=receiver.url)
    publish("test.first", {})
    send(subscription)
    publish("test.second", {})
    send(subscription)
    assert statuses(subscription) == {"pending": 2}
    return subscription


def test_a_reset_sends_what_is_due_at_once(
    backing_off: Subscription, send: Callable[..., None], ordered: list[Any]
) -> None:
    del ordered[:]
    assert circuit.reset([backing_off.pk]) == [], "it was active before"
    assert ordered == [(backing_off.pk, "deliver", 0.0)]
    send(backing_off)
    assert statuses(backing_off) == {"succeeded": 1, "pending": 1}
    assert Lane.objects.get().failures == 0


def test_what_was_in_flight_does_not_bring_it_back(backing_off: Subscription) -> None:
    epoch = Subscription.objects.get().circuit_epoch
    assert circuit.reset_backoff([backing_off.pk]) == [backing_off.pk]
    assert Subscription.objects.get().circuit_epoch == epoch + 1
    assert circuit.reset_backoff([backing_off.pk]) == []
    assert Subscription.objects.get().circuit_epoch == epoch + 1


def test_the_command_says_so_once(backing_off: Subscription) -> None:
    assert run("reset_circuit", "billing") == (
        "billing: its backoff has ended; what is due is sent\n"
    )
    assert run("reset_circuit", "billing") == "billing: already active; nothing to reset\n"
    assert run_json("reset_circuit", "billing")["changed"] == []


def test_a_healthy_lane_keeps_its_pace() -> None:
    subscription = make_subscription()
    Lane.objects.create(
        subscription=subscription, window=9, resume_at=timezone.now() - timedelta(seconds=1)
    )
    assert circuit.reset_backoff([subscription.pk]) == []
    assert Lane.objects.get().window == 9


def test_a_paused_one_stays_as_it_is(backing_off: Subscription) -> None:
    circuit.pause([backing_off.pk])
    assert circuit.reset_backoff([backing_off.pk]) == []
    assert Lane.objects.get().failures == 1
