"""What the sweep finds, and what is held, released and discarded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.keeping import sweep as sweeping
from deliveries.keeping.sweep import Swept, sweep
from deliveries.models import Delivery, Lane
from deliveries.sending.sender import Sender
from subscriptions import circuit
from tests.deliveries.conftest import Script
from tests.deliveries.sending import (
    Send,
    publish_numbered,
    tripped,
)
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_release_begins_with_one_request_and_doubles(sender: Sender, ordered: list[Any]) -> None:
    """What is in flight together: one, two, four … up to the subscription's own limit."""
    in_flight: list[int] = []

    def respond(_: Received) -> Answer:
        return Answer(200, delay=0.05)

    with Receiver(respond=respond) as slow:
        subscription = make_subscription(url=slow.url, max_in_flight=8)
        circuit.pause([subscription.pk])
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO deliveries_event (id, topic, type, body, created_at) "
                "VALUES ('e', 'test.one', '', '{}', now())"
            )
            cursor.execute(
                "INSERT INTO deliveries_delivery (event_id, subscription_id, status, "
                "attempt_count, retries_used, last_error, created_at) "
                "SELECT 'e', %s, 'held', 0, 0, '', now() FROM generate_series(1, 63)",
                [subscription.pk],
            )
        circuit.reset([subscription.pk])
        while Delivery.objects.filter(status="pending").exists():
            sender.serve([subscription.pk], recovering=True)
        arrivals = [one.at for one in slow.received]
        end = [at + 0.05 for at in arrivals]
        for number, at in enumerate(arrivals):
            in_flight.append(
                sum(
                    1
                    for begin, over in zip(arrivals, end, strict=True)
                    if begin <= at < over and begin <= arrivals[number]
                )
            )
    assert len(arrivals) == 63
    assert in_flight[0] == 1
    assert max(in_flight[:3]) <= 2
    assert max(in_flight[:7]) <= 4
    assert 4 < max(in_flight) <= 8


def test_the_sweep_finds_due_work_and_leaves_the_rest_alone(ordered: list[Any]) -> None:
    due, resting, served, later = (make_subscription() for _ in range(4))
    publish("test.one", {})
    soon = timezone.now() + timedelta(seconds=60)
    Lane.objects.create(subscription=resting, resume_at=soon)
    Lane.objects.create(subscription=served, lease_until=soon)
    Delivery.objects.filter(subscription=later).update(next_attempt_at=soon)
    ordered.clear()
    assert sweep() == Swept(due=1, failing=0, probes=0, stopped=0, deleted=0)
    assert ordered == [(due.pk, "deliver", 0.0)]


def test_the_sweep_holds_and_discards_what_slipped_in(ordered: list[Any]) -> None:
    paused, deleted = make_subscription(), make_subscription()
    publish("test.one", {})
    key = deleted.pk
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET enabled = false WHERE id = %s", [paused.pk]
        )
        cursor.execute("DELETE FROM subscriptions_signingsecret WHERE subscription_id = %s", [key])
        cursor.execute("DELETE FROM subscriptions_subscription WHERE id = %s", [key])
    found = sweep()
    assert (found.stopped, found.deleted) == (1, 1)
    assert statuses(paused) == {"held": 1}
    assert Delivery.objects.get(subscription_id=key).status == "discarded"


def test_held_deliveries_are_discarded_if_the_operator_says_so(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    circuit.reset([subscription.pk], discard_held=True)
    assert statuses(subscription) == {"failed": 5, "discarded": 3}
    assert Delivery.objects.filter(last_error="discarded by an operator").count() == 3


def test_the_sweep_releases_what_was_published_while_the_circuit_was_reset(
    send: Send, receiver: Receiver, script: Script, at_once: Callable[..., list[Any]]
) -> None:
    """The publisher saw it tripped; when it committed, it was active again."""
    from django.db import transaction

    subscription = tripped(send, receiver, script)
    with transaction.atomic():
        publish("test.meanwhile", {})
        at_once(lambda _: circuit.reset([subscription.pk]), 1)
    assert statuses(subscription) == {"failed": 5, "pending": 3, "held": 1}
    assert sweep().released == 1
    assert statuses(subscription) == {"failed": 5, "pending": 4}


def test_a_large_backlog_is_held_and_released_in_batches(
    send: Send, monkeypatch: pytest.MonkeyPatch, ordered: list[Any]
) -> None:
    subscription = make_subscription()
    publish_numbered(25)
    monkeypatch.setattr("deliveries.holding.hold.__defaults__", (10,))
    monkeypatch.setattr("deliveries.holding.release.__defaults__", (10,))
    monkeypatch.setattr("deliveries.keeping.sweep.BATCH", 10)
    circuit.pause([subscription.pk])
    assert statuses(subscription) == {"held": 10, "pending": 15}
    sweep()
    assert statuses(subscription) == {"held": 25}
    circuit.reset([subscription.pk])
    assert statuses(subscription) == {"held": 15, "pending": 10}
    sweep()
    assert statuses(subscription) == {"pending": 25}


@pytest.mark.usefixtures("sender")
def test_a_sweep_wakes_everybody_before_it_moves_a_large_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    subscription = make_subscription()
    publish_numbered(3)
    Delivery.objects.update(status="held", next_attempt_at=None, held_at=timezone.now())
    other = make_subscription(topic_patterns=["other"])
    publish("other", {})
    monkeypatch.setattr(
        "deliveries.keeping.sweep.wake", lambda ids, **_: done.extend(f"wake {one}" for one in ids)
    )
    release = sweeping.release

    def slow_release(ids: Any) -> int:
        done.append("release")
        release(ids, 1)
        return sweeping.BATCH  # as if there were more

    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(sweeping, "release", slow_release)
    sweep()
    assert done[0] == f"wake {other.pk}"
    # A batch at a time, until the next sweep is due.
    assert done[1:] == ["release", f"wake {subscription.pk}"] * 2
    assert statuses(subscription) == {"held": 1, "pending": 2}
