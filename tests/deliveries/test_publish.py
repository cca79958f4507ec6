"""`publish` and `publish_many` on real PostgreSQL."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from deliveries import EventConflict, NewEvent, publish, publish_many
from deliveries.body import InvalidEventId, InvalidPayload, PayloadTooLarge
from deliveries.models import Delivery, Event, Lane
from deliveries.waking import wakeups
from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.topics.rules import InvalidTopic
from tests.deliveries.conftest import forget_clients
from tests.factories import make_subscription, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[set[UUID], bool]]:
    """The wake-ups, as (subscription ids, recovering)."""
    calls: list[tuple[set[UUID], bool]] = []

    def record(ids: Any, *, recovering: bool = False) -> None:
        calls.append((set(map(UUID, ids)), recovering))

    monkeypatch.setattr("deliveries.publishing.publish.wake", record)
    return calls


def test_an_event_gets_one_delivery_for_each_matching_subscription(woken: list[Any]) -> None:
    one = make_subscription(topic_patterns=["order.*"])
    both = make_subscription(topic_patterns=["order.created", "order.>"])
    other = make_subscription(topic_patterns=["invoice.*"])
    event = publish("order.created", {"id": 42}, event_type="created")
    assert statuses(one) == {"pending": 1}
    assert statuses(both) == {"pending": 1}
    assert statuses(other) == {}
    assert woken == [({one.pk, both.pk}, False)]
    stored = Event.objects.get(pk=event.id)
    assert json.loads(bytes(stored.body)) == {
        "v": 1,
        "id": event.id,
        "ts": json.loads(event.body)["ts"],
        "topic": "order.created",
        "type": "created",
        "payload": {"id": 42},
    }
    assert bytes(stored.body) == event.body
    assert stored.payload == {"id": 42}


def test_an_event_that_nobody_wants_is_recorded_and_wakes_nobody(woken: list[Any]) -> None:
    event = publish("nobody.listens", {})
    assert Event.objects.filter(pk=event.id).exists()
    assert woken == []


def test_a_tripped_subscription_gets_its_delivery_held_and_a_paused_one_gets_none(
    woken: list[Any],
) -> None:
    tripped, paused = make_subscription(), make_subscription()
    with transaction.atomic():
        circuit.record(
            [
                circuit.Report(
                    tripped.pk, tripped.circuit_epoch, circuit.tally([False] * 5), "x", True
                )
            ]
        )
    circuit.pause([paused.pk])
    publish("test.one", {})
    assert statuses(tripped) == {"held": 1}
    assert statuses(paused) == {}
    assert woken == []


def test_a_failing_subscription_is_woken_in_the_recover_queue(woken: list[Any]) -> None:
    failing, healthy = make_subscription(), make_subscription()
    Subscription.objects.filter(pk=failing.pk).update(consecutive_failures=1)
    publish("test.one", {})
    assert sorted(woken, key=lambda one: one[1]) == [({healthy.pk}, False), ({failing.pk}, True)]


def test_a_lane_that_rests_is_not_woken(woken: list[Any]) -> None:
    resting = make_subscription()
    Lane.objects.create(subscription=resting, failures=2, resume_at="2999-01-01T00:00:00Z")
    publish("test.one", {})
    assert statuses(resting) == {"pending": 1}
    assert woken == []


def test_a_failing_lane_that_is_being_tried_is_not_woken(woken: list[Any]) -> None:
    tried, over = make_subscription(), make_subscription()
    Lane.objects.create(subscription=tried, failures=1, lease_until="2999-01-01T00:00:00Z")
    Lane.objects.create(subscription=over, failures=1, lease_until="1999-01-01T00:00:00Z")
    publish("test.one", {})
    assert woken == [({over.pk}, True)]


def test_nothing_is_published_and_nobody_woken_when_the_caller_rolls_back(
    woken: list[Any],
) -> None:
    subscription = make_subscription()
    with pytest.raises(RuntimeError), transaction.atomic():
        publish("test.one", {})
        raise RuntimeError
    assert not Event.objects.exists()
    assert statuses(subscription) == {}
    assert woken == []


def test_nobody_is_woken_before_the_caller_commits(woken: list[Any]) -> None:
    make_subscription()
    with transaction.atomic():
        publish("test.one", {})
        assert woken == []
    assert len(woken) == 1


def test_publishing_costs_one_statement_and_no_transaction_of_its_own(woken: list[Any]) -> None:
    for _ in range(30):
        make_subscription()
    with CaptureQueriesContext(connection) as queries:
        publish("test.one", {})
        publish("test.one", {}, event_id="given")
    assert len(queries) == 2, [query["sql"][:80] for query in queries]
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(50)])
    assert len(queries) == 1
    assert Delivery.objects.count() == 30 * 52


def test_without_prepared_statements_all_is_the_same(
    woken: list[Any], configure: Callable[..., None]
) -> None:
    configure(prepared_statements=False)
    subscription = make_subscription()
    publish("test.one", {})
    publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(3)])
    assert statuses(subscription) == {"pending": 4}


def test_a_subscription_is_woken_once_for_events_that_are_published_together(
    woken: list[Any],
) -> None:
    every = make_subscription()
    some = make_subscription(topic_patterns=["test.1"])
    publish_many([NewEvent(topic=f"test.{n % 3}", payload={"n": n}) for n in range(6)])
    assert woken == [({every.pk, some.pk}, False)]
    assert (statuses(every), statuses(some)) == ({"pending": 6}, {"pending": 2})


def test_a_wake_up_that_fails_fails_no_publish(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(ids: Any, **_: Any) -> None:
        raise RuntimeError("no wake-up today")

    monkeypatch.setattr("deliveries.publishing.publish.wake", broken)
    subscription = make_subscription()
    publish("test.one", {})
    with transaction.atomic():
        publish("test.one", {})
    assert statuses(subscription) == {"pending": 2}
    assert caplog.text.count("no wake-up today") >= 2


def test_postgresql_plans_the_statements_of_publishing_once(woken: list[Any]) -> None:
    """By itself: five times for the parameters at hand, and then once for all."""
    make_subscription()
    with transaction.atomic():
        for n in range(10):
            publish("test.one", {"n": n})
            publish_many([NewEvent(topic=f"test.{m}", payload={"n": n}) for m in range(n + 2)])
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT custom_plans, generic_plans FROM pg_prepared_statements "
                "WHERE statement LIKE '%deliveries_publish%' AND statement NOT LIKE '%pg_prepared%'"
            )
            found = cursor.fetchall()
    assert [custom for custom, _ in found] == [5, 5]
    assert all(generic >= 5 for _, generic in found)


SESSION = "SELECT name, setting FROM pg_settings WHERE source = 'session'"


@pytest.mark.parametrize("in_transaction", [False, True])
def test_publishing_leaves_no_setting_on_the_connection(
    woken: list[Any], in_transaction: bool
) -> None:
    def settings_of_the_session() -> Any:
        with connection.cursor() as cursor:
            cursor.execute(SESSION)
            return cursor.fetchall()

    make_subscription()
    before = settings_of_the_session()
    with transaction.atomic() if in_transaction else nullcontext():
        publish("test.one", {}, event_id="one")
        publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(3)])
        with pytest.raises(EventConflict):
            publish("test.two", {}, event_id="one")
        assert settings_of_the_session() == before
    assert settings_of_the_session() == before


def test_the_same_id_and_content_gives_the_first_event_back(woken: list[Any]) -> None:
    subscription = make_subscription()
    first = publish("test.one", {"n": 1}, event_type="t", event_id="order:1")
    again = publish("test.one", {"n": 1}, event_type="t", event_id="order:1")
    assert (again.id, again.created_at, bytes(again.body)) == (
        first.id,
        first.created_at,
        first.body,
    )
    assert statuses(subscription) == {"pending": 1}


@pytest.mark.parametrize(
    ("topic", "payload", "event_type"),
    [("test.two", {"n": 1}, "t"), ("test.one", {"n": 2}, "t"), ("test.one", {"n": 1}, "u")],
)
def test_the_same_id_with_another_content_is_a_conflict_and_the_transaction_goes_on(
    woken: list[Any], topic: str, payload: dict[str, Any], event_type: str
) -> None:
    subscription = make_subscription()
    publish("test.one", {"n": 1}, event_type="t", event_id="order:1")
    with transaction.atomic():
        with pytest.raises(EventConflict, match="order:1"):
            publish(topic, payload, event_type=event_type, event_id="order:1")
        publish("test.three", {})
    assert statuses(subscription) == {"pending": 2}


def test_one_conflict_among_many_publishes_none_of_them(woken: list[Any]) -> None:
    make_subscription()
    publish("test.one", {"n": 1}, event_id="taken")
    with pytest.raises(EventConflict):
        publish_many(
            [
                NewEvent(topic="test.one", payload={}, event_id="new"),
                NewEvent(topic="test.one", payload={"n": 2}, event_id="taken"),
            ]
        )
    assert list(Event.objects.values_list("id", flat=True)) == ["taken"]


def test_twins_within_one_call_are_one_event(woken: list[Any]) -> None:
    twin = NewEvent(topic="test.one", payload={"n": 1}, event_id="twin")
    first, second = publish_many([twin, twin])
    assert first is second
    with pytest.raises(EventConflict):
        publish_many([twin, NewEvent(topic="test.one", payload={"n": 2}, event_id="twin")])


def test_twenty_publishers_of_one_id_make_one_event(
    woken: list[Any], at_once: Callable[..., list[Any]]
) -> None:
    subscription = make_subscription()
    events = at_once(lambda _: publish("test.one", {"n": 1}, event_id="same"), 20)
    assert len({(event.id, event.created_at) for event in events}) == 1
    assert statuses(subscription) == {"pending": 1}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"topic": "a..b", "payload": {}}, InvalidTopic),
        ({"topic": "a.*", "payload": {}}, InvalidTopic),
        ({"topic": "a", "payload": []}, InvalidPayload),
        ({"topic": "a", "payload": {"x": float("nan")}}, InvalidPayload),
        ({"topic": "a", "payload": {"x": "y" * 300_000}}, PayloadTooLarge),
        ({"topic": "a", "payload": {}, "event_id": "a b"}, InvalidEventId),
        ({"topic": "a", "payload": {}, "event_type": "x\n"}, ValueError),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    woken: list[Any], arguments: dict[str, Any], error: type[Exception]
) -> None:
    with transaction.atomic():
        with pytest.raises(error):
            publish(**arguments)
        publish("good", {})
    assert Event.objects.count() == 1


def test_a_misspelt_key_of_publish_many_is_refused() -> None:
    with pytest.raises(TypeError, match="payloud"):
        publish_many([{"topic": "a", "payloud": {}}])  # type: ignore[typeddict-item]


def test_a_subscription_made_in_the_same_transaction_is_matched(woken: list[Any]) -> None:
    with transaction.atomic():
        subscription = make_subscription()
        publish("test.one", {})
    assert statuses(subscription) == {"pending": 1}


@pytest.fixture
def silent_server() -> Iterator[int]:
    """A port on which connections are taken and nothing is ever answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield server.getsockname()[1]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if "cannot be reached" in one.message]


@pytest.mark.parametrize("kind", ["down", "silent"])
def test_a_broker_that_is_away_costs_less_than_a_second_and_one_warning(
    kind: str,
    silent_server: int,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from webhooks_project.celery import app

    port = silent_server if kind == "silent" else 1
    settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
    forget_clients()
    monkeypatch.setattr(app.conf, "broker_url", settings.REDIS_URL)
    app.amqp._producer_pool = None
    app._pool = None
    monkeypatch.setattr(wakeups, "redis_outage", wakeups.Outage("Redis"))
    monkeypatch.setattr(wakeups, "broker_outage", wakeups.Outage("broker"))
    subscription = make_subscription()
    try:
        with caplog.at_level(logging.WARNING):
            longest = 0.0
            for _ in range(5):
                started = time.monotonic()
                publish("test.one", {})
                longest = max(longest, time.monotonic() - started)
            assert longest < 1
            assert statuses(subscription) == {"pending": 5}
        # One for Redis and one for the broker.
        assert len(warnings(caplog)) == 2
    finally:
        forget_clients()
        app.amqp._producer_pool = None
        app._pool = None
