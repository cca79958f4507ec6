"""Whom a topic would reach, and why not the others."""

from __future__ import annotations

from typing import Any

import pytest
from django.db import connection

from deliveries import publish
from deliveries.models import Delivery
from deliveries.publishing import reach as module
from deliveries.publishing.reach import reach
from subscriptions import circuit
from subscriptions.topics.rules import InvalidTopic
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db


def names(found: Any) -> list[str]:
    return [one.subscription.name for one in found]


def test_it_names_each_subscription_with_its_patterns_and_what_a_delivery_would_be() -> None:
    make_subscription(name="a", topic_patterns=["x.y", "order.*", ">"])
    trip(make_subscription(name="b", topic_patterns=["order.created"]))
    circuit.pause([make_subscription(name="c", topic_patterns=["order.>"]).pk])
    make_subscription(name="d", topic_patterns=["order.paid", "order.created.eu"])
    found = reach("order.created")
    assert [(one.subscription.name, one.patterns, one.becomes) for one in found.reached] == [
        ("a", ["order.*", ">"], "pending"),
        ("b", ["order.created"], "held"),
        ("c", ["order.>"], ""),
    ]
    [missed] = found.missed
    assert (missed.subscription.name, missed.pattern) == ("d", "order.paid")
    assert "token 2 is 'created'" in missed.why
    assert (found.more, found.all_looked_at) == (False, True)


@pytest.mark.parametrize("tenant", ["", "acme", "other"])
def test_it_says_what_publishing_does(tenant: str) -> None:
    make_subscription(name="own", topic_patterns=["test.*"])
    make_subscription(name="all", topic_patterns=["test.*"], all_tenants=True)
    make_subscription(name="theirs", topic_patterns=["test.*"], tenant="acme")
    publish("test.one", {}, tenant=tenant)
    got = Delivery.objects.values_list("subscription__name", flat=True)
    found = reach("test.one", tenant)
    assert names(found.reached) == sorted(got)
    assert sorted(names(found.missed) + names(found.reached)) == ["all", "own", "theirs"]
    assert all("it matches, but is of" in one.why for one in found.missed)


def test_the_nearest_miss_comes_first_and_the_lists_are_bounded(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    for name, pattern in (("far", "a.b.c.d"), ("near", "order.creatd"), ("no", "order.created")):
        make_subscription(name=name, topic_patterns=[pattern])
    make_subscription(name="stranger", topic_patterns=["nothing"], tenant="acme")
    with django_assert_num_queries(3):
        found = reach("order.created", misses=1)
    assert names(found.missed) == ["near"]
    found = reach("order.created", limit=0)
    assert (found.reached, found.more) == ([], True)
    monkeypatch.setattr(module, "MAX_LOOKED_AT", 2)
    assert not reach("order.created").all_looked_at


def test_what_is_no_topic_is_refused() -> None:
    with pytest.raises(InvalidTopic):
        reach("order.*")


def test_subscriptions_are_found_by_the_index() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(
            f"EXPLAIN SELECT id FROM subscriptions_subscription WHERE {module._FOUND}",
            [["order.*"]],
        )
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert "subscription_topic_keys" in plan
