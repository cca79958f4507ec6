"""`/metrics`: who may read it, what it says of the tables, and what is counted once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest
import redis
from django.db import connection
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from deliveries import publish
from deliveries.models import Delivery, Lane
from deliveries.monitoring import counts as counting
from deliveries.monitoring import metrics, sweeps, tables
from deliveries.monitoring.counts import Counts, read_sums
from deliveries.waking import wakeups
from subscriptions import circuit
from subscriptions.models import Subscription, TripFuse
from tests.deliveries.monitoring.conftest import TOKEN, Scrape
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)


def test_nobody_reads_the_metrics_unless_a_token_is_set_and_known(
    client: Any, configure: Callable[..., None], fresh: redis.Redis
) -> None:
    for authorization in ("", "Bearer ", "Bearer x"):
        assert client.get("/metrics", headers={"authorization": authorization}).status_code == 403
    configure(metrics_token=TOKEN)
    for authorization in ("", "Bearer ", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer é"):
        response = client.get("/metrics", headers={"authorization": authorization})
        assert response.status_code == 401
        assert response["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in response.content.decode()
    response = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain; version=0.0.4")


def test_no_label_has_values_without_bound(scrape: Scrape, client: Any) -> None:
    make_subscription(name="a-name-of-a-customer")
    publish("test.one", {})
    scrape()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.metrics_page().decode()):
        for sample in family.samples:
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    known = {"source", "state", "status", "outcome", "queue", "le", "kind", "channel"}
    assert set(labels) == known
    assert labels["queue"] == {"deliver", "recover"}
    assert "a-name-of-a-customer" not in metrics.metrics_page().decode()


def test_a_page_costs_the_tables_once_however_many_ask(
    scrape: Scrape, at_once: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scrape()
    monkeypatch.setattr(metrics, "ask", None)
    assert len(set(at_once(lambda _: metrics.metrics_page(), 10))) == 1


def test_what_the_tables_hold_is_on_the_page(scrape: Scrape) -> None:
    active = make_subscription()
    failing, paused, tripped = (make_subscription() for _ in range(3))
    publish("test.one", {})
    publish("test.one", {})
    Delivery.objects.filter(subscription=failing).update(
        next_attempt_at=timezone.now() + timedelta(hours=1)
    )
    Subscription.objects.filter(pk=failing.pk).update(consecutive_failures=3)
    circuit.pause([paused.pk])
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET enabled = false, auto_disabled_at = now() "
            "WHERE id = %s",
            [tripped.pk],
        )
    Delivery.objects.filter(subscription=tripped).delete()
    Delivery.objects.filter(subscription=active).update(
        next_attempt_at=timezone.now() - timedelta(minutes=5)
    )
    TripFuse.objects.create(blown_at=timezone.now())
    sweeps.mark_sweep()

    page = scrape()
    assert page["webhooks_subscriptions", ("active",)] == 2
    assert page["webhooks_subscriptions", ("paused",)] == 1
    assert page["webhooks_subscriptions", ("tripped",)] == 1
    assert page["webhooks_subscriptions_failing", ()] == 1
    assert page["webhooks_queue_deliveries", ("due",)] == 2
    assert page["webhooks_queue_deliveries", ("later",)] == 2
    assert page["webhooks_queue_deliveries", ("held",)] == 2
    assert 300 <= page["webhooks_oldest_due_seconds", ()] < 330
    assert page["webhooks_fuse_blown", ()] == 1
    assert 0 <= page["webhooks_sweep_lag_seconds", ()] < 30
    assert page["webhooks_wake_ups_total", ("deliver",)] == 8
    assert page["webhooks_due_set_subscriptions", ("deliver",)] == 4


@pytest.mark.parametrize(
    "waits",
    [
        {"lease_until": timedelta(minutes=1)},
        {"resume_at": timedelta(minutes=1)},
    ],
)
def test_what_is_being_sent_and_what_waits_on_purpose_is_not_the_oldest_due(
    fresh: redis.Redis, waits: dict[str, timedelta]
) -> None:
    subscription = make_subscription()
    publish("test.one", {})
    Delivery.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
    lane = Lane.objects.create(subscription=subscription)
    assert tables.read_tables().oldest_due >= 3600
    for field, later in waits.items():
        Lane.objects.filter(pk=lane.pk).update(**{field: timezone.now() + later})
    assert tables.read_tables().oldest_due == 0


def test_what_has_backed_off_waits_for_a_worker_since_then(fresh: redis.Redis) -> None:
    subscription = make_subscription()
    publish("test.one", {})
    Delivery.objects.update(next_attempt_at=timezone.now() - timedelta(hours=1))
    Lane.objects.create(subscription=subscription, resume_at=timezone.now() - timedelta(seconds=5))
    assert 5 <= tables.read_tables().oldest_due < 65


@pytest.mark.parametrize(
    ("statement", "keeps"),
    [
        ("UPDATE subscriptions_subscription SET name = name WHERE false", False),
        ("UPDATE subscriptions_subscription SET name = name", True),
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1", True),
        ("SELECT 1", False),
    ],
)
def test_an_open_transaction_that_keeps_old_rows_is_told(
    fresh: redis.Redis, statement: str, keeps: bool
) -> None:
    make_subscription()
    server = {"host": connection.settings_dict["HOST"], "dbname": connection.settings_dict["NAME"]}
    with psycopg.connect(user="postgres", **server) as other:
        other.execute(statement)
        assert (tables.read_tables().oldest_transaction > 0) == keeps
        other.rollback()
        assert tables.read_tables().oldest_transaction == 0


def test_a_queue_of_millions_is_estimated(
    fresh: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_subscription()
    for number in range(40):
        publish("test.one", {"n": number})
    Delivery.objects.filter(pk__in=Delivery.objects.order_by("id")[:20].values("pk")).update(
        next_attempt_at=timezone.now() + timedelta(hours=1)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE deliveries_delivery")
    monkeypatch.setattr(tables, "COUNTED", 30)
    found = tables.read_tables()
    # Of the 30 that were looked at, those that are due come first.
    assert (found.due, found.later) == (26, 14)


def test_redis_that_is_away_takes_its_metrics_with_it_and_nothing_else(
    scrape: Scrape, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = redis.Redis(port=1, socket_connect_timeout=0.2)
    for module in (counting, sweeps):
        monkeypatch.setattr(module, "client", lambda: dead)
    page = scrape()
    assert page["webhooks_source_up", ("redis",)] == 0
    assert page["webhooks_source_up", ("tables",)] == 1
    assert ("webhooks_fuse_blown", ()) in page
    assert ("webhooks_trips_total", ()) not in page


def test_counts_whose_answer_was_lost_are_added_once(
    fresh: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts()
    counts.add({"trips": 2})
    real = wakeups.client()

    class LosesTheAnswer:
        def eval(self, *arguments: Any) -> None:
            real.eval(*arguments)
            raise redis.TimeoutError("no answer")

    monkeypatch.setattr(counting, "client", LosesTheAnswer)
    assert not counts.flush()
    monkeypatch.setattr(counting, "client", wakeups.client)
    wakeups.redis_outage.end()
    counts.add({"trips": 1})
    assert counts.flush()
    assert read_sums().counts == {"trips": 3}


def test_counts_are_kept_while_redis_is_away(
    fresh: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts()
    dead = redis.Redis(port=1, socket_connect_timeout=0.2)
    monkeypatch.setattr(counting, "client", lambda: dead)
    for _ in range(3):
        counts.add({"resets": 1})
        assert not counts.flush()
    monkeypatch.setattr(counting, "client", wakeups.client)
    wakeups.redis_outage.end()
    assert counts.flush()
    assert read_sums().counts == {"resets": 3}
