"""The hot statements find their rows by the index that is meant for them, in filled tables.

What a plan costs is not compared: only which indexes all the statements of one step use, and that
none reads a large table from end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.housekeeping import expire_held, prune
from deliveries.models import Delivery, Lane
from deliveries.receiver import Answer, Receiver
from deliveries.replaying import replay
from deliveries.sweeping import sweep
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.deliveries.conftest import Script
from tests.deliveries.plans import explained
from tests.factories import make_subscription

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("filled", "ordered")]

Send = Callable[..., None]

LARGE = {
    "deliveries_attempt",
    "deliveries_delivery",
    "deliveries_event",
    "deliveries_lane",
    "subscriptions_signingsecret",
    "subscriptions_subscription",
}
# Of tables with one row, or none that matters.
SMALL = ("subscriptions_topicindex", "subscriptions_tripfuse")

# 2,000 subscriptions, 30,000 events, deliveries and attempts: history, in which to find a few.
FILL = """
INSERT INTO subscriptions_subscription (
    id, name, url, topic_patterns, headers, max_in_flight, recovery, enabled,
    consecutive_failures, last_error, circuit_epoch, probe_count, created_at, updated_at
)
SELECT gen_random_uuid(), 'filling ' || n, 'https://filling.example/' || n, '["filling.one"]',
    '{}', 10, 'manual', true, 0, '', 0, 0, now(), now()
FROM generate_series(1, 2000) n;

INSERT INTO subscriptions_signingsecret (subscription_id, ciphertext, created_at)
SELECT id, 'unreadable', now() FROM subscriptions_subscription;

INSERT INTO deliveries_lane (subscription_id, wake_again, "window", failures)
SELECT id, false, 10, 0 FROM subscriptions_subscription;

INSERT INTO deliveries_event (id, topic, type, body, created_at)
SELECT 'filling-' || n, 'filling.one', '', '{}', now() - n * interval '1 second'
FROM generate_series(1, 30000) n;

INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, attempt_count, retries_used, last_error, created_at,
    finished_at
)
SELECT e.id, s.id, 'succeeded', 1, 0, '', e.created_at, e.created_at
FROM (SELECT *, row_number() OVER () AS n FROM deliveries_event) e
JOIN (SELECT *, row_number() OVER () AS n FROM subscriptions_subscription) s
    ON s.n = 1 + e.n % 2000;

INSERT INTO deliveries_attempt (
    delivery_id, number, outcome, status_code, error, response_body, remote_address, started_at,
    duration_ms
)
SELECT id, 1, 'success', 200, '', '', '', created_at, 1 FROM deliveries_delivery;
"""


@pytest.fixture
def filled(transactional_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(FILL)
        for table in sorted(LARGE):
            cursor.execute(f"VACUUM (ANALYZE) {table}")


@contextmanager
def reads_by(*indexes: str, whole: tuple[str, ...] = ()) -> Iterator[None]:
    """The block reads large tables by exactly these indexes; `whole` names what it may scan."""
    with explained() as plans:
        yield
    used = {name for plan in plans.found for name in plan.indexes if not name.startswith(SMALL)}
    scanning = [plan.sql for plan in plans.found if plan.scanned & (LARGE - set(whole))]
    assert scanning == []
    assert used == set(indexes)


def make_due() -> None:
    Delivery.objects.filter(status="pending").update(next_attempt_at=timezone.now())
    Lane.objects.filter(failures__gt=0).update(resume_at=None)


@pytest.fixture
def subscription(receiver: Receiver) -> Subscription:
    return make_subscription(url=receiver.url, recovery="automatic")


# All that claiming one lane and settling its results reads.
SENDING = (
    "deliveries_delivery_pkey",
    "deliveries_event_pkey",
    "deliveries_lane_pkey",
    "delivery_due",
    "subscriptions_signingsecret_subscription_id_9830a63c",
    "subscriptions_subscription_pkey",
)


def test_publishing(subscription: Subscription) -> None:
    publish("test.one", {})  # the first call of a process reads all patterns, on purpose
    with reads_by("deliveries_lane_pkey", "subscriptions_subscription_pkey"):
        publish("test.one", {})


def test_sending_what_is_due(send: Send, subscription: Subscription) -> None:
    publish("test.one", {})
    with reads_by(*SENDING):
        send(subscription)
    assert Delivery.objects.filter(subscription=subscription, status="succeeded").exists()


def test_trying_again(send: Send, subscription: Subscription, script: Script) -> None:
    publish("test.one", {})
    script.answers = [Answer(500), Answer(500)]
    send(subscription)
    make_due()
    with reads_by(*SENDING):
        send(subscription)
    assert Delivery.objects.get(subscription=subscription).attempt_count == 2


def test_probing(send: Send, subscription: Subscription, script: Script) -> None:
    publish("test.one", {})
    publish("test.one", {})
    script.answers = [Answer(410)]
    send(subscription)
    Subscription.objects.filter(pk=subscription.pk).update(next_probe_at=timezone.now())
    with reads_by(*set(SENDING) - {"delivery_due"}, "delivery_held"):
        script.answers = [Answer(500)]
        send(subscription)
    assert subscription.state == "active"
    subscription.refresh_from_db()
    assert (subscription.state, subscription.probe_count) == ("tripped", 1)


def test_tripping_pausing_and_resetting(send: Send, subscription: Subscription) -> None:
    publish("test.one", {})
    with reads_by("delivery_due", "subscriptions_subscription_pkey"):
        circuit.pause([subscription.pk])
    with reads_by("delivery_held", "subscriptions_subscription_pkey"):
        circuit.reset([subscription.pk])
    assert Delivery.objects.filter(subscription=subscription, status="pending").exists()


def test_sweeping(subscription: Subscription) -> None:
    publish("test.one", {})
    with reads_by(
        "delivery_due",
        "delivery_held",
        "deliveries_lane_pkey",
        "subscriptions_subscription_pkey",
        "subscription_probe_due",
    ):
        swept = sweep()
    assert swept.due == 1


def test_housekeeping() -> None:
    Delivery.objects.filter(event_id="filling-30000").update(
        finished_at=timezone.now() - timezone.timedelta(days=31)
    )
    with reads_by("delivery_finished"):
        expire_held()
        prune()


def test_replaying() -> None:
    delivery = Delivery.objects.get(event_id="filling-1")
    with reads_by("deliveries_delivery_pkey", "subscriptions_subscription_pkey"):
        assert replay([delivery.pk])[1] == {delivery.pk}
