"""Whom a tenant's event reaches: its own subscriptions, those for all tenants, and nobody else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliveries import EventConflict, NewEvent, publish, publish_many
from deliveries.keeping.replay import Chosen, replay, replay_chosen, why_not
from deliveries.models import Delivery, Event, Lane
from subscriptions.models import Subscription
from subscriptions.tenants import InvalidTenant
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from tests.topics import matches, patterns, topics
from webhooks_project.receiver import Answer, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("ordered")]

# Few, so that what is generated often meets; some that look like what the index is made of.
tenants = st.sampled_from(["", "a", "b", "a b", "A", "*", ">", "a.b", "é"])
subscribed = st.builds(
    lambda tenant, all_tenants, patterns: Subscription(
        tenant="" if all_tenants else tenant,
        all_tenants=all_tenants,
        name=f"receiver {uuid.uuid4()}",
        url="https://receiver.example/hook",
        topic_patterns=patterns,
    ),
    tenants,
    st.sampled_from([False, False, True]),
    st.lists(patterns, max_size=4),
)


def reached(subscription: Subscription, topic: str, tenant: str) -> bool:
    """The rule, as a person would say it."""
    is_for = subscription.all_tenants or subscription.tenant == tenant
    return is_for and any(matches(pattern, topic) for pattern in subscription.topic_patterns)


def recipients(event: Event) -> set[uuid.UUID]:
    found = list(Delivery.objects.filter(event_id=event.id).values_list("subscription", flat=True))
    assert len(found) == len(set(found))
    return set(found)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.lists(subscribed, max_size=8),
    st.lists(st.tuples(topics, tenants), min_size=1, max_size=6),
)
def test_an_event_is_never_with_a_stranger(
    made: list[Subscription], asked: list[tuple[str, str]]
) -> None:
    with transaction.atomic():
        made = Subscription.objects.bulk_create(made)
        events = publish_many(
            [NewEvent(topic=topic, payload={}, tenant=tenant) for topic, tenant in asked]
        )
        events.append(publish(asked[0][0], {}, tenant=asked[0][1]))
        for event, (topic, tenant) in zip(events, [*asked, asked[0]], strict=True):
            assert recipients(event) == {
                subscription.pk for subscription in made if reached(subscription, topic, tenant)
            }
        for delivery in Delivery.objects.select_related("event", "subscription"):
            assert delivery.tenant == delivery.subscription.tenant
            assert delivery.tenant in ("", delivery.event.tenant)
        transaction.set_rollback(True)


def test_a_row_that_was_written_past_validation_gets_nothing_of_others() -> None:
    """The statement compares tenants, whatever the keys of the index say."""
    bad = make_subscription(tenant="a", topic_patterns=["x"])
    for tenant, pattern in (("a", "\tx"), ("", "b\tx"), ("", "\tx"), ("b\t", "x"), ("b", "\tx")):
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE subscriptions_subscription SET tenant = %s, topic_patterns = %s",
                [tenant, f'["{pattern}"]'.replace("\t", "\\t")],
            )
        assert recipients(publish("x", {}, tenant="b")) == set()
    assert bad.tenant == "a"


def test_an_event_of_no_tenant_is_the_applications_alone() -> None:
    own, everything = make_subscription(), make_subscription(all_tenants=True)
    make_subscription(tenant="acme")
    event = publish("test.one", {})
    assert (event.tenant, recipients(event)) == ("", {own.pk, everything.pk})


def test_an_id_that_another_tenant_has_taken_is_a_conflict() -> None:
    make_subscription(tenant="acme")
    first = publish("test.one", {"secret": 1}, event_id="x", tenant="acme")
    for stranger in ("", "other"):
        with pytest.raises(EventConflict) as refused:
            publish("test.one", {"secret": 1}, event_id="x", tenant=stranger)
        assert "acme" not in str(refused.value)
        with pytest.raises(EventConflict):
            publish_many([{"topic": "t", "payload": {}, "event_id": "x", "tenant": stranger}])
    assert publish("test.one", {"secret": 1}, event_id="x", tenant="acme").pk == first.pk
    with pytest.raises(EventConflict):
        publish_many(
            [
                NewEvent(topic="t", payload={}, event_id="y", tenant=tenant)
                for tenant in ("acme", "other")
            ]
        )
    assert [(event.pk, event.tenant) for event in Event.objects.all()] == [("x", "acme")]


@pytest.mark.parametrize("tenant", ["x" * 65, " a", "a ", "a\tb", "a\nb", "\0", "\ud800", 7, None])
def test_what_cannot_be_a_tenant_is_refused(tenant: Any) -> None:
    with pytest.raises(InvalidTenant):
        publish("test.one", {}, tenant=tenant)
    with pytest.raises(InvalidTenant):
        publish_many([{"topic": "test.one", "payload": {}, "tenant": tenant}])
    assert not Event.objects.exists()


def test_a_program_of_an_older_version_publishes_for_the_application() -> None:
    own, everything = make_subscription(), make_subscription(all_tenants=True)
    make_subscription(tenant="acme")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT * FROM deliveries_publish(ARRAY['x'], ARRAY['test.one'], ARRAY[''],"
            " ARRAY['{}'::bytea], ARRAY[now()], ARRAY['test.one'], ARRAY[E'>\\ntest.>'], true)"
        )
    assert recipients(Event.objects.get(pk="x", tenant="")) == {own.pk, everything.pk}


def test_only_the_applications_subscriptions_can_be_for_all_tenants() -> None:
    own = make_subscription(all_tenants=True)
    with pytest.raises(IntegrityError, match="is_the_applications"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET tenant = 'acme' WHERE id = %s", [own.pk]
        )


# What is sent


def test_only_a_subscription_for_all_tenants_is_told_the_tenant(
    send: Callable[..., None], receiver: Receiver
) -> None:
    everything = make_subscription(name="audit", url=receiver.url, all_tenants=True)
    acme = make_subscription(name="billing", url=receiver.url, tenant="café 100%")
    first = publish("test.one", {}, tenant="café 100%")
    second = publish("test.one", {})
    send(everything, acme)
    told = {
        (one.headers["X-Webhook-Event-Id"], one.headers.get("X-Webhook-Tenant"))
        for one in receiver.received
    }
    assert told == {(first.id, "caf%C3%A9%20100%25"), (first.id, None), (second.id, None)}
    assert len(receiver.received) == 3
    # The envelope is the same for both.
    assert {one.body for one in receiver.received} == {first.body, second.body}
    assert b"caf" not in first.body


def test_a_retry_and_a_probe_tell_the_tenant_too(
    send: Callable[..., None], receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, all_tenants=True, recovery="automatic")
    publish("test.one", {}, tenant="acme")
    script.answers = [Answer(500), Answer(410)]
    send(subscription)
    Delivery.objects.update(next_attempt_at=timezone.now())
    Lane.objects.update(resume_at=None)
    send(subscription)
    Subscription.objects.filter(pk=subscription.pk).update(next_probe_at=timezone.now())
    send(subscription)
    assert [one.headers["X-Webhook-Tenant"] for one in receiver.received] == ["acme"] * 2
    publish("test.one", {}, tenant="acme")
    Subscription.objects.filter(pk=subscription.pk).update(next_probe_at=timezone.now())
    send(subscription)
    assert [one.headers["X-Webhook-Tenant"] for one in receiver.received] == ["acme"] * 3
    assert statuses(subscription)["succeeded"] == 1


def test_the_header_of_the_tenant_cannot_be_set_for_a_subscription() -> None:
    for name in ("X-Webhook-Tenant", "x_webhook_tenant"):
        with pytest.raises(ValidationError, match="set by the sender"):
            make_subscription(headers={name: "other"})


# Replay


def test_a_replay_never_crosses_tenants() -> None:
    """Whatever somebody has written into the table."""
    everything = make_subscription(all_tenants=True)
    past_the_model = Subscription._base_manager.filter(pk=everything.pk)
    acme = make_subscription(tenant="acme")
    publish("test.one", {}, tenant="acme")
    own = publish("test.one", {})
    Delivery.objects.update(status="succeeded", next_attempt_at=None, finished_at=timezone.now())
    past_the_model.update(all_tenants=False)
    everything.refresh_from_db()
    stranger = Delivery.objects.get(subscription=everything, event__tenant="acme")
    ids = list(Delivery.objects.values_list("pk", flat=True))
    _, changed = replay(ids)
    assert changed == set(ids) - {stranger.pk}
    assert "a tenant's" in why_not([stranger.pk])[stranger.pk]
    assert statuses(acme) == {"pending": 1}
    assert Delivery.objects.get(subscription=everything, event=own).status == "pending"
    for chosen in replay_chosen(Chosen(everything, ["succeeded"])):
        assert chosen == (0, 0)
    past_the_model.update(all_tenants=True)
    assert replay([stranger.pk])[1] == {stranger.pk}


# What is read

OTHERS = """
INSERT INTO subscriptions_subscription (
    id, tenant, name, url, topic_patterns, headers, max_in_flight, recovery, enabled,
    consecutive_failures, last_error, circuit_epoch, probe_count, created_at, updated_at
)
SELECT gen_random_uuid(), 'tenant ' || n, 'billing', 'https://filling.example/' || n,
    '["order.*", "test.>"]', '{}', 10, 'manual', true, 0, '', 0, 0, now(), now()
FROM generate_series(1, 10000) n
"""


@pytest.mark.parametrize("analysed", [False, True])
def test_one_of_ten_thousand_tenants_reads_its_own_rows_alone(analysed: bool) -> None:
    everything = make_subscription(all_tenants=True, topic_patterns=["order.created"])
    for _ in range(3):
        publish("order.created", {}, tenant="tenant 7")
    with connection.cursor() as cursor:
        cursor.execute(OTHERS)
        if analysed:
            cursor.execute("VACUUM (ANALYZE) subscriptions_subscription")
        publish("order.created", {}, tenant="tenant 7")
        with transaction.atomic():
            read = (
                "SELECT idx_tup_fetch, seq_tup_read FROM pg_stat_xact_user_tables"
                " WHERE relname = 'subscriptions_subscription'"
            )
            cursor.execute(read)
            before = cursor.fetchone()
            event = publish("order.created", {}, tenant="tenant 7")
            publish_many(
                [
                    {"topic": "order.created", "payload": {}, "tenant": f"tenant {n}"}
                    for n in range(1, 6)
                ]
            )
            cursor.execute(read)
            fetched, scanned = (
                after - count for after, count in zip(cursor.fetchone(), before, strict=True)
            )
    seven = Subscription.objects.get(tenant="tenant 7")
    assert recipients(event) == {everything.pk, seven.pk}
    assert (fetched, scanned) == (2 + 5 * 2, 0)
