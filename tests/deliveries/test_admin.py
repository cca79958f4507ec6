"""The admin of events, deliveries and attempts: what it shows, and what it refuses."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from django.test import Client
from django.utils.http import urlencode

from deliveries import publish
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription
from tests.deliveries.in_the_admin import (
    ATTEMPTS,
    DELIVERIES,
    EVENTS,
    SUBSCRIPTIONS,
    attempted,
    listed,
    text,
)
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("url", [EVENTS, DELIVERIES, ATTEMPTS])
def test_nothing_here_can_be_added_changed_or_deleted(
    admin_client: Client, deliveries: list[Delivery], url: str
) -> None:
    row = {
        EVENTS: deliveries[0].event_id,
        DELIVERIES: deliveries[0].pk,
        ATTEMPTS: attempted(deliveries[0].pk).pk,
    }[url]
    assert admin_client.get(f"{url}add/").status_code == 403
    assert admin_client.post(f"{url}{row}/change/", {}).status_code == 403
    assert admin_client.post(f"{url}{row}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in text(admin_client, url)
    page = text(admin_client, f"{url}{row}/change/")
    assert '<form method="post"' not in page.split('class="page-title"')[1]


def test_the_newest_come_first_with_topic_and_subscription(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    assert [one.pk for one in listed(admin_client, DELIVERIES)] == [one.pk for one in deliveries]
    page = text(admin_client, DELIVERIES)
    assert page.count("test.created") == 3
    assert f"{SUBSCRIPTIONS}{deliveries[0].subscription_id}/change/" in page
    assert f"{EVENTS}{deliveries[0].event_id}/change/" in page


def test_deliveries_of_a_deleted_subscription_stay_visible(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    Subscription.objects.get().delete()
    page = text(admin_client, DELIVERIES)
    assert page.count("(deleted)") == 3
    page = text(admin_client, f"{DELIVERIES}{deliveries[0].pk}/change/")
    assert "(deleted)" in page
    assert "its subscription was deleted. It can be sent again." in page


@pytest.mark.parametrize("url", [EVENTS, DELIVERIES, ATTEMPTS])
def test_a_longer_page_needs_no_more_queries(
    admin_client: Client, django_assert_max_num_queries: Any, url: str
) -> None:
    make_subscription()

    def queries() -> int:
        publish("test.a", {})
        attempted(Delivery.objects.latest("id").pk)
        with django_assert_max_num_queries(50) as captured:
            admin_client.get(url)
        return len(captured)

    few = queries()
    make_subscription()
    for _ in range(5):
        publish("test.a", {})
        attempted(Delivery.objects.latest("id").pk)
    assert queries() == few


def test_a_search_finds_exact_ids_only(admin_client: Client, deliveries: list[Delivery]) -> None:
    one = deliveries[1]
    attempt = attempted(one.pk)
    for term in (one.event_id, f" {one.pk} "):
        assert listed(admin_client, DELIVERIES, q=term) == [one]
        assert listed(admin_client, ATTEMPTS, q=term) == [attempt]
    assert [event.pk for event in listed(admin_client, EVENTS, q=one.event_id)] == [one.event_id]
    for url in (DELIVERIES, ATTEMPTS, EVENTS):
        for term in (one.event_id[:8], "9" * 30, "test.created"):
            assert listed(admin_client, url, q=term) == []


def test_lists_are_narrowed_by_status_subscription_event_and_delivery(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    other = make_subscription(topic_patterns=["other"])
    publish("other", {})
    theirs = Delivery.objects.get(subscription=other)
    finish("failed", pk=theirs.pk)
    assert listed(admin_client, DELIVERIES, status__exact="failed") == [theirs]
    assert listed(admin_client, DELIVERIES, subscription=other.pk) == [theirs]
    assert listed(admin_client, DELIVERIES, event=theirs.event_id) == [theirs]
    assert listed(admin_client, DELIVERIES, subscription="nonsense") == []
    attempt = attempted(theirs.pk)
    unanswered = attempted(deliveries[0].pk, outcome="timeout", status_code=None)
    assert listed(admin_client, ATTEMPTS, delivery=theirs.pk) == [attempt]
    assert listed(admin_client, ATTEMPTS, delivery="nonsense") == []
    for term in (theirs.event_id, theirs.pk):
        assert listed(admin_client, ATTEMPTS, delivery=theirs.pk, q=term) == [attempt]
        assert listed(admin_client, ATTEMPTS, delivery=deliveries[0].pk, q=term) == []
    assert listed(admin_client, ATTEMPTS, answer="5xx") == [attempt]
    assert listed(admin_client, ATTEMPTS, answer="none") == [unanswered]
    for answer in ("2xx", "4xx", "6xx"):
        assert listed(admin_client, ATTEMPTS, answer=answer) == []


def test_an_event_shows_its_body_readable_and_harmless(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    response = admin_client.get(f"{EVENTS}{deliveries[0].event_id}/change/")
    page = response.content.decode()
    assert "<script>alert(1)" not in page
    assert '  "payload": {\n    "n": 2,' in html.unescape(page)
    assert "1 pending" in page


def test_an_event_is_found_by_any_id_that_it_may_have(admin_client: Client) -> None:
    make_subscription()
    for key in ("order_5F7", "a:b_3Ac", "a.b-c_2F"):
        publish("test.one", {}, event_id=key)
        delivery = Delivery.objects.get(event_id=key)
        pages = (
            EVENTS,
            DELIVERIES,
            f"{DELIVERIES}?{urlencode({'event': key})}",
            f"{DELIVERIES}{delivery.pk}/change/",
        )
        for page in pages:
            [address, *_] = re.findall(rf'href="({EVENTS}[^"]+/change/)', text(admin_client, page))
            assert f"Event {key}" in text(admin_client, address), (key, page)


def test_a_huge_or_broken_body_is_shown_in_part_or_as_it_is(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deliveries.admin.events.MAX_BODY_CHARACTERS", 50)
    page = f"{EVENTS}{deliveries[0].event_id}/change/"
    assert "characters in all" in text(admin_client, page)
    Event.objects.update(body=b"no json")
    assert "no json" in text(admin_client, page)
    Event.objects.update(body=b"\xff no text")
    assert "ff 20 6e 6f 20" in text(admin_client, page)


def test_a_delivery_shows_its_attempts_and_their_answers_harmless(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    attempt = attempted(deliveries[0].pk)
    page = admin_client.get(f"{DELIVERIES}{deliveries[0].pk}/change/").content.decode()
    assert f"{ATTEMPTS}{attempt.pk}/change/" in page
    assert "503 Service Unavailable" in page
    assert "1,234 ms" in page
    page = admin_client.get(f"{ATTEMPTS}{attempt.pk}/change/").content.decode()
    assert "&lt;h1&gt;busy" in page
    assert "<h1>busy" not in page


@pytest.mark.parametrize(
    "page",
    [
        DELIVERIES + "?event=%00",
        DELIVERIES + "?subscription=%00",
        DELIVERIES + "?q=%00",
        DELIVERIES + "?status__exact=%00",
        DELIVERIES + "?last_error=%00",
        DELIVERIES + "?id=" + "9" * 30,
        DELIVERIES + "?attempt_count=" + "9" * 30,
        DELIVERIES + "?event__id=%00",
        DELIVERIES + "?p=" + "9" * 30,
        DELIVERIES + "?o=9.-9.x",
        EVENTS + "?topic=%00",
        EVENTS + "?created_at=%00",
        ATTEMPTS + "?answer=%00",
        DELIVERIES + "?before=x",
        DELIVERIES + "?before=[]",
        DELIVERIES + "?after=%5B%22" + "9" * 30 + "%22%5D",
        DELIVERIES + "?before=%00",
        DELIVERIES + "?before=" + "%5B" * 9000,
        DELIVERIES + "?topic=rare&before=%5B%221%22%5D",
        DELIVERIES + "?since=yesterday",
        DELIVERIES + "?until=" + "9" * 30 + "d",
        DELIVERIES + "?since=0001-01-01&until=9999-12-31T23:59",
        DELIVERIES + "?answer=6xx",
        DELIVERIES + "?subscription=nobody",
        EVENTS + "reach/?topic=%00",
        EVENTS + "reach/?topic=a&tenant=%00",
        ATTEMPTS + "?delivery=" + "9" * 30,
        ATTEMPTS + "?delivery_id=" + "9" * 30,
        ATTEMPTS + "?delivery__id__exact=" + "9" * 30,
        ATTEMPTS + "9" * 30 + "/history/",
        SUBSCRIPTIONS + "?state=%00",
        SUBSCRIPTIONS + "?name=%00",
        SUBSCRIPTIONS + "?id=%00",
        ATTEMPTS + "?delivery=%00",
        EVENTS + "%00/change/",
        DELIVERIES + "%00/change/",
        DELIVERIES + "9" * 30 + "/change/",
    ],
)
def test_a_page_for_what_no_row_can_be_is_no_error(admin_client: Client, page: str) -> None:
    assert admin_client.get(page, follow=True).status_code in (200, 400, 404)


@pytest.mark.parametrize(
    "page",
    [
        DELIVERIES + "?last_error__icontains=x",
        DELIVERIES + "?created_at__gt=2026-01-01",
        EVENTS + "?topic__startswith=x",
        ATTEMPTS + "?duration_ms__gt=1000",
    ],
)
def test_a_search_that_would_read_a_whole_table_is_refused(admin_client: Client, page: str) -> None:
    assert admin_client.get(page).status_code == 400


# Tenants


def test_events_and_deliveries_show_their_tenant_and_narrow_to_it(admin_client: Client) -> None:
    own = make_subscription(name="a", all_tenants=True)
    acme = make_subscription(name="b", tenant="acme")
    event = publish("test.one", {}, tenant="acme")
    publish("test.one", {})
    for url in (EVENTS, DELIVERIES):
        assert "?tenant=acme" in text(admin_client, url)
        assert [one.tenant for one in listed(admin_client, url, tenant="acme")] == ["acme"]
        assert "\0" not in admin_client.get(url, {"tenant": "\0"}).headers["Location"]
    assert f"{EVENTS}{event.pk}/change/" in text(admin_client, DELIVERIES)
    assert "acme" in text(admin_client, f"{EVENTS}{event.pk}/change/")
    assert "b (acme)" in text(admin_client, f"{DELIVERIES}?subscription={acme.pk}")
    for status in ("pending", "held", "failed"):
        found = listed(admin_client, DELIVERIES, tenant="acme", status__exact=status)
        assert {one.subscription_id for one in found} == (
            {acme.pk} if status == "pending" else set()
        )
    assert {one.subscription_id for one in listed(admin_client, DELIVERIES)} == {own.pk, acme.pk}
