"""What is held for too long ends; what is kept long enough goes; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.keeping.housekeeping import expire_held, prune
from deliveries.models import Attempt, Delivery, Event
from subscriptions.conf import WebhookSettings
from subscriptions.models import Subscription
from tests.deliveries.plans import RowsRead
from tests.factories import make_subscription, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def nobody_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliveries.publishing.publish.wake", lambda *_, **__: 0)


def aged(status: str, days: float) -> Delivery:
    """A delivery in `status`, with an attempt, that ended so many days ago."""
    event = publish("test.one", {})
    then = timezone.now() - timedelta(days=days)
    finished = None if status in {"pending", "held"} else then
    due = then if status == "pending" else None
    deliveries = Delivery.objects.filter(event=event)
    deliveries.update(
        status=status, finished_at=finished, created_at=then, held_at=then, next_attempt_at=due
    )
    Event.objects.filter(pk=event.pk).update(created_at=then)
    delivery = deliveries.get()
    Attempt.objects.create(delivery=delivery, number=1, outcome="http", started_at=then)
    return delivery


def test_each_kind_is_kept_as_long_as_its_setting_says() -> None:
    make_subscription()
    kept = {
        aged("succeeded", 29).pk,
        aged("failed", 89).pk,
        aged("discarded", 89).pk,
        aged("pending", 400).pk,
        aged("held", 400).pk,
    }
    gone = [aged("succeeded", 31), aged("failed", 91), aged("discarded", 91)]
    assert prune() == (3, 3)
    assert set(Delivery.objects.values_list("pk", flat=True)) == kept
    assert set(Attempt.objects.values_list("delivery_id", flat=True)) == kept
    assert not Event.objects.filter(pk__in=[one.event_id for one in gone]).exists()
    assert Event.objects.count() == 5
    assert prune() == (0, 0)


def test_an_event_stays_while_one_of_its_deliveries_does() -> None:
    make_subscription()
    make_subscription()
    event = publish("test.one", {})
    then = timezone.now() - timedelta(days=40)
    Event.objects.update(created_at=then)
    first, second = Delivery.objects.order_by("pk")
    Delivery.objects.filter(pk=first.pk).update(
        status="succeeded", finished_at=then, next_attempt_at=None
    )
    Delivery.objects.filter(pk=second.pk).update(
        status="failed", finished_at=then, next_attempt_at=None
    )
    assert prune() == (1, 0)
    assert Event.objects.filter(pk=event.pk).exists()


def test_held_deliveries_expire_visibly(configure: Callable[..., None]) -> None:
    make_subscription()
    old, fresh = aged("held", 7.1), aged("held", 6.9)
    assert expire_held() == 1
    old.refresh_from_db()
    fresh.refresh_from_db()
    assert (old.status, fresh.status) == ("discarded", "held")
    assert "WEBHOOKS_HOLD_DAYS" in old.last_error
    assert old.finished_at is not None


def test_the_longest_times_that_a_setting_may_say_are_kept(configure: Callable[..., None]) -> None:
    make_subscription()
    for status in ("held", "succeeded", "failed"):
        aged(status, 400)
    names = ("hold_days", "keep_succeeded_days", "keep_failed_days", "keep_audit_days")
    longest = WebhookSettings.from_env({f"WEBHOOKS_{name.upper()}": "36600" for name in names})
    configure(**{name: getattr(longest, name) for name in names})
    assert expire_held() == 0
    assert prune() == (0, 0)


def test_many_batches_and_two_at_once(
    monkeypatch: pytest.MonkeyPatch, at_once: Callable[..., list[Any]]
) -> None:
    monkeypatch.setattr("deliveries.keeping.housekeeping.BATCH", 3)
    make_subscription()
    for _ in range(20):
        aged("succeeded", 31)
    assert sum(one[0] for one in at_once(lambda _: prune(), 4)) == 20
    prune()
    assert not Delivery.objects.exists()
    assert not Event.objects.exists()


def many(count: int, status: str, days: float, *, subscription: Subscription) -> None:
    """That many deliveries, each of an event of its own, that ended (or were held) so long ago."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            WITH event AS (
                INSERT INTO deliveries_event (id, topic, type, body, created_at)
                SELECT gen_random_uuid(), 'test.one', '', '{}',
                    now() - %(days)s * interval '1 day' + n * interval '1 millisecond'
                FROM generate_series(1, %(count)s) n
                RETURNING id, created_at
            )
            INSERT INTO deliveries_delivery (
                event_id, subscription_id, status, attempt_count, retries_used, last_error,
                created_at, finished_at, held_at
            )
            SELECT id, %(subscription)s, %(status)s, 1, 0, '', created_at,
                CASE WHEN %(status)s <> 'held' THEN created_at END, created_at
            FROM event
            """,
            {"days": days, "count": count, "status": status, "subscription": subscription.pk},
        )


@pytest.mark.parametrize("analyzed_with", [None, 0, 1, 10, 300])
def test_what_is_kept_is_read_once_however_much_goes(
    monkeypatch: pytest.MonkeyPatch, analyzed_with: int | None
) -> None:
    """Failed deliveries are kept for longer, and keep their events: 2,000 older ones of each.

    What PostgreSQL knows of the tables may be from another time.
    """
    monkeypatch.setattr("deliveries.keeping.housekeeping.BATCH", 100)
    if analyzed_with is not None:
        with connection.cursor() as cursor:
            many(analyzed_with, "succeeded", 1, subscription=make_subscription())
            Delivery.objects.all().delete()
            Event.objects.all().delete()
            cursor.execute("ANALYZE deliveries_delivery, deliveries_event")
    subscription = make_subscription()
    many(2000, "failed", 60, subscription=subscription)
    many(2000, "succeeded", 40, subscription=subscription)
    rows = RowsRead()
    assert prune() == (2000, 2000)
    # 4,000 deliveries and 4,000 events, each found by an index, looked up and locked: a few reads.
    assert rows.so_far() < 40_000
    assert Delivery.objects.count() == Event.objects.count() == 2000


def test_what_is_still_held_is_read_once_however_much_expires(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("deliveries.keeping.housekeeping.BATCH", 100)
    first, second = sorted((make_subscription(), make_subscription()), key=lambda one: one.pk)
    many(2000, "held", 1, subscription=first)
    many(2000, "held", 10, subscription=second)
    rows = RowsRead()
    assert expire_held() == 2000
    assert rows.so_far() < 20_000
    assert statuses(first) == {"held": 2000}
    assert statuses(second) == {"discarded": 2000}
