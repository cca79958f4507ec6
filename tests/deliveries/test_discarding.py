"""What an operator discards ends in batches, after the request; what is held later is kept."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from deliveries import holding, publish
from deliveries.keeping.sweep import sweep
from deliveries.models import Delivery, Lane
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.commands import run, run_json
from tests.factories import make_subscription, statuses
from tests.subscriptions.test_commands import trip

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("ordered"),
]

BATCH = 3


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("holding", "keeping.sweep"):
        monkeypatch.setattr(f"deliveries.{module}.BATCH", BATCH)


@pytest.fixture
def subscription() -> Subscription:
    """Tripped, with ten held deliveries."""
    made = make_subscription(name="billing")
    trip(made)
    publish_some(10)
    assert statuses(made) == {"held": 10}
    return made


def publish_some(count: int) -> None:
    for number in range(count):
        publish("test.one", {"n": number})


def marked() -> bool:
    return Lane.objects.filter(discard_before__isnull=False).exists()


def test_a_reset_discards_a_batch_and_the_sweep_the_rest(subscription: Subscription) -> None:
    circuit.reset([subscription.pk], discard_held=True)
    assert statuses(subscription) == {"discarded": BATCH, "held": 10 - BATCH}
    publish_some(2)
    assert statuses(subscription)["pending"] == 2
    sweep()
    assert statuses(subscription) == {"discarded": 10, "pending": 2}
    assert not marked()
    reasons = Delivery.objects.filter(status="discarded").values_list("last_error", flat=True)
    assert set(reasons) == {holding.DISCARDED_BY_OPERATOR}


def test_a_small_discard_is_done_at_once(subscription: Subscription) -> None:
    Delivery.objects.filter(pk__in=Delivery.objects.values("pk")[BATCH - 1 :]).delete()
    circuit.reset([subscription.pk], discard_held=True)
    assert statuses(subscription) == {"discarded": BATCH - 1}
    assert not marked()


def test_what_is_held_after_the_discard_is_kept_and_released_after_it(
    subscription: Subscription,
) -> None:
    circuit.reset([subscription.pk], discard_held=True)
    trip(subscription)
    publish_some(2)
    circuit.reset([subscription.pk])
    assert "pending" not in statuses(subscription)
    for _ in range(3):
        sweep()
    assert statuses(subscription) == {"discarded": 10, "pending": 2}


def test_what_was_pending_and_is_held_again_is_kept(subscription: Subscription) -> None:
    circuit.reset([subscription.pk], discard_held=True)
    publish_some(2)
    circuit.pause([subscription.pk])
    for _ in range(2):
        sweep()
    assert statuses(subscription) == {"discarded": 10, "held": 2}


def test_no_probe_is_sent_of_what_is_being_discarded(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit.reset([subscription.pk], discard_held=True)
    trip(subscription)
    Subscription.objects.update(next_probe_at=timezone.now())
    # The sweep's time is over before it comes to the backlogs.
    monkeypatch.setattr("deliveries.keeping.sweep._take_turns", lambda *_, **__: None)
    assert sweep().probes == 0
    Lane.objects.update(discard_before=None)
    assert sweep().probes == 1


@pytest.fixture
def locked(subscription: Subscription) -> Iterator[threading.Event]:
    """The first held delivery is locked by somebody else, until the event is set."""
    is_locked, let_go = threading.Event(), threading.Event()
    first = Delivery.objects.order_by("pk").values_list("pk", flat=True)[0]

    def lock() -> None:
        try:
            with transaction.atomic():
                Delivery.objects.select_for_update().get(pk=first)
                is_locked.set()
                assert let_go.wait(30)
        finally:
            connection.close()

    thread = threading.Thread(target=lock)
    thread.start()
    assert is_locked.wait(30)
    yield let_go
    let_go.set()
    thread.join(30)


def test_what_somebody_has_locked_is_discarded_later_and_not_released(
    subscription: Subscription, locked: threading.Event
) -> None:
    holding.start_gently([subscription.pk])
    Lane.objects.update(discard_before=timezone.now())
    sweep()
    assert statuses(subscription) == {"discarded": 9, "held": 1}
    assert marked()
    locked.set()
    for _ in range(2):
        with transaction.atomic():  # waits for the other to let go
            Delivery.objects.select_for_update().first()
        sweep()
    assert statuses(subscription) == {"discarded": 10}
    assert not marked()


def test_a_mark_that_is_left_over_discards_nothing_new(subscription: Subscription) -> None:
    """As after a process that died between the last batch and taking the mark away."""
    Lane.objects.update_or_create(
        subscription=subscription, defaults={"discard_before": subscription.created_at}
    )
    circuit.reset([subscription.pk])
    for _ in range(2):
        sweep()
    assert statuses(subscription) == {"pending": 10}
    assert not marked()


def test_how_much_is_still_to_be_discarded_is_said(
    subscription: Subscription, admin_client: Client
) -> None:
    circuit.reset([subscription.pk], discard_held=True)
    trip(subscription)
    publish_some(1)
    assert "discarding 7 of 8 held deliveries" in run("subscriptions")
    assert run_json("subscriptions")[0]["discarding"] == 7
    for page in ("", f"{subscription.pk}/change/"):
        url = f"/admin/subscriptions/subscription/{page}"
        assert "(discarding 7)" in admin_client.get(url).content.decode()
    sweep()
    assert "discarding" not in run("subscriptions")


def test_a_deleted_subscriptions_deliveries_are_discarded_by_the_sweep(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "BATCH_OF_DELETED", BATCH)
    Subscription.objects.get(pk=subscription.pk).delete()
    assert statuses(subscription) == {"discarded": BATCH, "held": 10 - BATCH}
    sweep()
    assert statuses(subscription) == {"discarded": 10}
