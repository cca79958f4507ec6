"""The hot statements read few rows, however full the tables are.

Which indexes they read them by is not compared, nor what the planner thinks of it: only how many
rows PostgreSQL has read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.keeping.housekeeping import expire_held, prune
from deliveries.keeping.replay import replay
from deliveries.keeping.sweep import sweep
from deliveries.models import Delivery, Event, Lane
from deliveries.sending.sender import Sender
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.deliveries.conftest import Script
from tests.deliveries.plans import Plans, explaining
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Answer, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("ordered")]

Send = Callable[..., None]

LARGE = {
    "deliveries_attempt",
    "deliveries_delivery",
    "deliveries_event",
    "deliveries_lane",
    "subscriptions_signingsecret",
    "subscriptions_subscription",
}
# Of these the sweep and housekeeping may read all: there are as many rows as subscriptions.
OF_SUBSCRIPTIONS = ("deliveries_lane", "subscriptions_subscription")
# Of tables with one row, or none that matters.
SMALL = ("subscriptions_tripfuse",)

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
FROM (SELECT *, row_number() OVER (ORDER BY created_at) AS n FROM deliveries_event) e
JOIN (SELECT *, row_number() OVER () AS n FROM subscriptions_subscription) s
    ON s.n = 1 + e.n % 2000
ORDER BY e.n;

INSERT INTO deliveries_attempt (
    delivery_id, number, outcome, status_code, error, response_body, remote_address, started_at,
    duration_ms
)
SELECT id, 1, 'success', 200, '', '', '', created_at, 1 FROM deliveries_delivery ORDER BY id;
"""


def analyse() -> None:
    with connection.cursor() as cursor:
        for table in sorted(LARGE):
            cursor.execute(f"VACUUM (ANALYZE) {table}")


@pytest.fixture(autouse=True)
def new_files(transactional_db: None) -> Iterator[None]:
    """Plans depend on the size of the files, which tests that are rolled back leave behind.

    And on the statistics, which these tests leave to no other.
    """
    with connection.cursor() as cursor:
        # A connection that tests before this have left, or that is just ending, writes down later
        # what it read.
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
        cursor.execute("TRUNCATE deliveries_event, subscriptions_subscription CASCADE")
    yield
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE deliveries_delivery RESET (autovacuum_enabled)")
        cursor.execute(
            "SELECT pg_clear_attribute_stats(schemaname, tablename, attname, inherited)"
            " FROM pg_stats WHERE schemaname = 'public'"
        )


@pytest.fixture
def filled(new_files: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(FILL)
    analyse()


@pytest.fixture
def plans(filled: None) -> Iterator[Plans]:
    with explaining() as made:
        yield made


# Tens of rows are read for one delivery; a table read from end to end has thousands of them.
FEW = 300
# The sweep and housekeeping may read what there is once for each subscription.
ALL_SUBSCRIPTIONS = 10_000

Reads = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def reads(plans: Plans) -> Reads:
    """`with reads(limit)`: the block reads fewer rows, and for many subscriptions it costs no
    square of their number."""

    @contextmanager
    def check(limit: int = FEW) -> Iterator[None]:
        with plans.watched() as found:
            yield
        assert found
        assert [plan.sql for plan in found if plan.squared] == []
        assert plans.rows_read < limit

    return check


def make_due() -> None:
    Delivery.objects.filter(status="pending").update(next_attempt_at=timezone.now())
    Lane.objects.filter(failures__gt=0).update(resume_at=None)


@pytest.fixture
def subscription(plans: Plans, sender: Sender, receiver: Receiver) -> Subscription:
    return make_subscription(url=receiver.url, recovery="automatic")


def test_publishing(subscription: Subscription, reads: Reads) -> None:
    with reads():
        publish("test.one", {})


def test_sending_what_is_due(send: Send, subscription: Subscription, reads: Reads) -> None:
    publish("test.one", {})
    with reads():
        send(subscription)
    assert Delivery.objects.filter(subscription=subscription, status="succeeded").exists()


def test_little_is_read_of_tables_that_postgresql_believes_to_be_small(
    receiver: Receiver, request: pytest.FixtureRequest
) -> None:
    """As in the minute after the first burst of a new installation: what is known of the tables
    is from when there was next to nothing in them."""
    with explaining() as plans:
        send = request.getfixturevalue("send")
        others = [make_subscription(url=receiver.url, topic_patterns=["other"]) for _ in range(50)]
        subscription = make_subscription(url=receiver.url)
        publish("test.one", {})
        publish("other", {})
        send(subscription)
        send(*others)
        analyse()
        with plans.watched() as found:
            publish("test.one", {})
            send(subscription)
    assert statuses(subscription) == {"succeeded": 2}
    # All subscriptions may be read: they do not come in bursts.
    for plan in found:
        assert not plan.scanned & LARGE - set(OF_SUBSCRIPTIONS), plan.sql
        assert not any(index.startswith("deliver") for index in plan.scanned_indexes), plan.sql
    assert {index for plan in found for index in plan.indexes} >= {"delivery_due"}


def test_trying_again(send: Send, subscription: Subscription, script: Script, reads: Reads) -> None:
    publish("test.one", {})
    script.answers = [Answer(500), Answer(500)]
    send(subscription)
    make_due()
    with reads():
        send(subscription)
    assert Delivery.objects.get(subscription=subscription).attempt_count == 2


def test_probing(send: Send, subscription: Subscription, script: Script, reads: Reads) -> None:
    publish("test.one", {})
    script.answers = [Answer(410), Answer(500)]
    send(subscription)
    publish("test.one", {})
    Subscription.objects.filter(pk=subscription.pk).update(next_probe_at=timezone.now())
    with reads():
        send(subscription)
    subscription.refresh_from_db()
    assert (subscription.state, subscription.probe_count) == ("tripped", 1)


def test_tripping_pausing_and_resetting(
    send: Send, subscription: Subscription, reads: Reads
) -> None:
    publish("test.one", {})
    with reads():
        circuit.pause([subscription.pk])
    with reads():
        circuit.reset([subscription.pk])
    assert Delivery.objects.filter(subscription=subscription, status="pending").exists()


def test_sweeping(subscription: Subscription, reads: Reads) -> None:
    publish("test.one", {})
    with reads(ALL_SUBSCRIPTIONS):
        swept = sweep()
    assert swept.due == 1


def test_housekeeping(reads: Reads) -> None:
    Delivery.objects.filter(event_id="filling-30000").update(
        finished_at=timezone.now() - timedelta(days=31)
    )
    Event.objects.filter(pk="filling-30000").update(created_at=timezone.now() - timedelta(days=31))
    with reads(ALL_SUBSCRIPTIONS):
        assert expire_held() == 0
        assert prune() == (1, 1)


def test_replaying(reads: Reads) -> None:
    delivery = Delivery.objects.get(event_id="filling-1")
    with reads():
        assert replay([delivery.pk])[1] == {delivery.pk}


# One subscription's long history, made while all of it was pending, or held, and analysed then.
OLD_STATISTICS = """
ALTER TABLE deliveries_delivery SET (autovacuum_enabled = off);

INSERT INTO deliveries_event (id, topic, type, body, created_at)
SELECT 'old-' || n, 'old.one', '', '{{}}', now() FROM generate_series(1, 5000) n;

INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, attempt_count, retries_used, last_error, created_at,
    next_attempt_at, held_at
)
SELECT 'old-' || n, id, '{status}', 0, 0, '', now(),
    CASE WHEN '{status}' = 'pending' THEN now() - n * interval '1 second' END, now()
FROM subscriptions_subscription, generate_series(1, 5000) n;

ANALYZE;

UPDATE deliveries_delivery
SET status = 'succeeded', finished_at = now(), next_attempt_at = NULL, held_at = NULL;
"""


@pytest.mark.parametrize("status", ["pending", "held"])
def test_little_is_read_of_a_history_that_postgresql_believes_to_be_open(
    status: str, receiver: Receiver, request: pytest.FixtureRequest
) -> None:
    """As after a long outage: what is known of the tables is from when all of it was waiting."""
    with explaining() as plans:
        send = request.getfixturevalue("send")
        subscription = make_subscription(url=receiver.url)
        with connection.cursor() as cursor:
            cursor.execute(OLD_STATISTICS.format(status=status))
            cursor.execute("VACUUM deliveries_delivery")
        steps: list[Callable[[], object]] = [
            lambda: publish("test.one", {}),
            lambda: send(subscription),
            sweep,
            lambda: publish("test.one", {}),
            lambda: circuit.pause([subscription.pk]),
            sweep,
            lambda: circuit.reset([subscription.pk]),
            lambda: circuit.pause([subscription.pk]),
            lambda: circuit.reset([subscription.pk], discard_held=True),
            expire_held,
            sweep,
        ]
        read = []
        for step in steps:
            with plans.watched():
                step()
            read.append(plans.rows_read)
    assert max(read) < FEW, read
    assert statuses(subscription) == {"succeeded": 5001, "discarded": 1}
