"""The lists of events, deliveries and attempts: their pages, what narrows them, what they cost."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.http import urlencode

from deliveries import publish
from deliveries.admin import history as module
from deliveries.admin import pagination
from deliveries.admin.pagination import EstimatingPaginator
from deliveries.keeping import keyset
from deliveries.models import Delivery, Event
from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.times import exact
from tests.deliveries.in_the_admin import (
    ATTEMPTS,
    DELIVERIES,
    EVENTS,
    attempted,
    listed,
    text,
)
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db


def links(client: Client, url: str, **query: Any) -> tuple[list[int], str, str]:
    """The ids of a page, and its links to newer and older rows."""
    response = client.get(url, query)
    assert response.status_code == 200
    found = response.context["cl"]
    return [one.pk for one in found.result_list], found.paginator.newer, found.paginator.older


@pytest.mark.parametrize("query", [{}, {"topic": "test.a"}, {"status__exact": "pending"}])
def test_pages_lead_to_older_rows_and_back(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    monkeypatch.setattr(module.DeliveryAdmin, "list_per_page", 3)
    make_subscription()
    for _ in range(8):
        publish("test.a", {})
    every = list(Delivery.objects.values_list("pk", flat=True).order_by("-pk"))
    if "status__exact" in query:
        every.reverse()
    first, newer, older = links(admin_client, DELIVERIES, **query)
    assert (first, newer) == (every[:3], "")
    second, newer, older = links(admin_client, DELIVERIES + older)
    assert second == every[3:6]
    third, _, end = links(admin_client, DELIVERIES + older)
    assert (third, end) == (every[6:], "")
    assert links(admin_client, DELIVERIES + newer) == (first, "", links(admin_client, DELIVERIES,
                                                                        **query)[2])  # fmt: skip
    assert "COUNT(" not in "".join(statements(admin_client, DELIVERIES + older))


def test_pages_go_on_when_the_topic_gets_more_events_than_are_looked_at(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.DeliveryAdmin, "list_per_page", 4)
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 10)
    make_subscription(tenant="acme")

    def publish_some() -> None:
        for _ in range(10):
            publish("test.one", {}, tenant="acme")

    publish_some()
    expected = list(Delivery.objects.order_by("-pk").values_list("pk", flat=True))
    found, _, older = links(admin_client, DELIVERIES, topic="test.one", tenant="acme")
    publish_some()
    while older:
        page, _, older = links(admin_client, DELIVERIES + older)
        found += page
    assert found == expected
    broken = {"topic": "test.one", "tenant": "acme", "before": "nonsense"}
    assert admin_client.get(DELIVERIES, broken).url == f"{DELIVERIES}?e=1"


def statements(client: Client, url: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    return [query["sql"] for query in captured]


def test_a_page_that_stopped_to_look_says_so_and_leads_on(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 2)
    finish("succeeded", pk=deliveries[-1].pk)
    url = DELIVERIES + "?status__exact=succeeded"
    found, _, older = links(admin_client, url)
    assert found == []
    page = text(admin_client, url)
    assert "Nothing yet: look further." in page
    assert "Enough was looked at for one page; there may be more." in page
    assert "No deliveries found." in text(admin_client, DELIVERIES + "?status__exact=held")
    assert links(admin_client, DELIVERIES + older)[0] == [deliveries[-1].pk]


def test_deliveries_are_narrowed_by_everything_that_is_offered(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    newest, middle, oldest = deliveries
    acme = make_subscription(name="billing", tenant="acme")
    attempted(middle.pk)
    Delivery.objects.filter(pk=middle.pk).update(attempt_count=1)
    for one in (Delivery.objects, Event.objects):
        key = {"event" if one is Delivery.objects else "pk": oldest.event_id}
        one.filter(**key).update(created_at=timezone.now() - timedelta(hours=3))
    for query, expected in (
        ({"answer": "5xx"}, [middle]),
        ({"answer": "2xx"}, []),
        ({"answer": "none"}, []),
        ({"topic": "test.created"}, deliveries),
        ({"topic": "test"}, []),
        ({"since": "1h"}, [newest, middle]),
        ({"until": "1h"}, [oldest]),
        ({"since": "4h", "until": "2h", "topic": "test.created"}, [oldest]),
        ({"since": "2099-01-01 00:00"}, []),
        ({"tenant": "acme"}, []),
        ({"tenant": "acme", "subscription": "billing"}, []),
        ({"subscription": str(newest.subscription_id), "topic": "", "since": ""}, deliveries),
        ({"subscription": str(acme.pk)}, []),
    ):
        assert listed(admin_client, DELIVERIES, **query) == expected, query
    for query, said in (
        ({"subscription": "billing"}, "Several subscriptions are called 'billing'"),
        ({"subscription": "nobody"}, "There is no subscription 'nobody'."),
        ({"since": "yesterday"}, "'yesterday' is not a time"),
    ):
        assert said in text(admin_client, f"{DELIVERIES}?{urlencode(query)}")
        assert listed(admin_client, DELIVERIES, **query) == []


@pytest.mark.parametrize(
    ("page", "queries"),
    [
        (DELIVERIES, 4),
        (DELIVERIES + "?status__exact=failed", 4),
        (DELIVERIES + "?status__exact=succeeded", 2),
        (DELIVERIES + "?answer=5xx", 5),
        (DELIVERIES + "?topic=test.created", 4),
        (DELIVERIES + "?subscription=billing", 6),
        (DELIVERIES + "?since=1h", 5),
        (DELIVERIES + "{delivery}/change/", 6),
        (DELIVERIES + "{delivery}/resend/", 2),
        (ATTEMPTS, 1),
        (ATTEMPTS + "?answer=4xx", 2),
        (ATTEMPTS + "{attempt}/change/", 1),
        (EVENTS, 1),
        (EVENTS + "?topic=test.created", 1),
        (EVENTS + "{event}/change/", 8),
        (EVENTS + "reach/?topic=test.created", 3),
    ],
)
def test_each_page_costs_so_many_queries(
    admin_client: Client, deliveries: list[Delivery], page: str, queries: int
) -> None:
    """Besides those for the session and the user."""
    one = deliveries[0]
    finish("failed")
    Delivery.objects.update(attempt_count=1)
    attempt = attempted(one.pk)
    address = page.format(delivery=one.pk, attempt=attempt.pk, event=one.event_id)
    admin_client.get(address)
    made = [sql for sql in statements(admin_client, address) if "django_session" not in sql]
    own = [sql for sql in made if 'FROM "auth_user"' not in sql]
    assert len(own) == queries, "\n".join(own)


def test_a_topic_says_whom_it_would_reach_and_why_not_others(admin_client: Client) -> None:
    make_subscription(name="a", topic_patterns=["order.*"])
    make_subscription(name="near", topic_patterns=["order.created.eu"])
    trip(make_subscription(name="t", topic_patterns=["order.>"]))
    page = text(admin_client, EVENTS + "reach/?topic=order.created")
    assert "It would reach 2 subscriptions" in page
    assert "It would be held: the subscription is tripped." in page
    assert page.index("order.*") < page.index("It would not reach") < page.index("order.created.eu")
    assert "'a..b'" in text(admin_client, EVENTS + "reach/?topic=a..b")
    assert "It would reach" not in text(admin_client, EVENTS + "reach/")


def test_an_event_says_where_it_went_and_why_not_elsewhere(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    event = deliveries[0].event
    late = make_subscription(name="late")
    second = event.created_at.replace(microsecond=0)
    Event.objects.filter(pk=event.pk).update(created_at=second + timedelta(milliseconds=7))
    Subscription.objects.filter(pk=late.pk).update(created_at=second + timedelta(milliseconds=412))
    make_subscription(name="near", topic_patterns=["test.created.eu"])
    paused = make_subscription(name="quiet")
    Subscription.objects.filter(pk=paused.pk).update(created_at=event.created_at - timedelta(1))
    circuit.pause([paused.pk])
    page = text(admin_client, f"{EVENTS}{event.pk}/change/")
    went, missed = page.split("Where it did not go, and why")
    assert f"{DELIVERIES}{deliveries[0].pk}/change/" in went.split("Where it went")[1]
    at = exact(second)
    assert f"it was made later, at {at}.412; this was published at {at}.007" in missed
    assert "it is paused" in missed
    assert "test.created.eu" in missed
    assert "reach/?topic=test.created&tenant=" in missed
    assert "billing" not in missed


# Counting.


def test_few_rows_are_counted_and_many_are_estimated(
    deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert EstimatingPaginator(Delivery.objects.order_by("-id"), 2).num_pages == 2
    monkeypatch.setattr(pagination, "estimated_rows", lambda _: 1_000_000)
    assert EstimatingPaginator(Delivery.objects.order_by("-id"), 100).num_pages == 10_000


def test_a_count_that_takes_too_long_is_estimated(
    deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagination, "COUNT_MILLISECONDS", 50)
    monkeypatch.setattr(pagination, "estimated_rows", lambda _: 77)
    slow = Delivery.objects.extra(where=["pg_sleep(5) IS NOT NULL"]).order_by("-id")
    assert EstimatingPaginator(slow, 10).count == 77
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)
    assert Delivery.objects.count() == 3


def test_the_estimate_is_postgresqls_own(deliveries: list[Delivery]) -> None:
    assert pagination.estimated_rows(Delivery.objects.order_by("-id")) >= 0
    assert pagination.estimated_rows(Delivery.objects.filter(pk=1)) <= 1
    assert EstimatingPaginator(Delivery.objects.none().order_by("-id"), 2).count == 0
