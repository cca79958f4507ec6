"""What an operator does to subscriptions: the numbers that are shown first, and what is done."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.db.models import QuerySet
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries import publish
from deliveries.admin import acts
from deliveries.admin.subscriptions import MAX_CHOSEN
from deliveries.keeping import replay as replaying
from deliveries.models import Delivery
from subscriptions.models import AuditEntry, Subscription
from subscriptions.times import exact
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription, statuses
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db

LIST = "/admin/subscriptions/subscription/"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four deliveries are replayed at a time."""
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    monkeypatch.setattr(replaying, "BATCH", 2)
    monkeypatch.setattr(acts, "BATCH", 2)
    monkeypatch.setattr(acts, "MAX_REPLAYED", 4)


def failed(subscription: Subscription, number: int, topic: str = "test.a") -> None:
    for _ in range(number):
        publish(topic, {}, tenant=subscription.tenant)
    finish("failed")


def asked(*chosen: Subscription, **changes: Any) -> dict[str, Any]:
    since = exact(timezone.now() - timedelta(hours=1)).removesuffix(" UTC")
    return {
        "action": "replay",
        "_selected_action": [str(one.pk) for one in chosen],
        "since": since,
        "failed_only": "on",
        **changes,
    }


def text(response: Any) -> str:
    assert response.status_code == 200, response.content
    return " ".join(html.unescape(response.content.decode()).split())


def replayed(client: Client, url: str, sent: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Confirms, and goes on as the page does; what the pages said, and the messages at last."""
    pages: list[str] = []
    sent = {**sent, "confirmed": "1"}
    while (response := client.post(url, sent)).status_code == 200:
        pages.append(text(response))
        assert response.context["form"].is_valid(), response.context["form"].errors
        sent["going_on"] = response.context["done"].going_on
    assert response.status_code == 302
    return pages, [str(message) for message in get_messages(response.wsgi_request)]


def test_a_small_replay_is_counted_and_done_at_once(admin_client: Client) -> None:
    one = make_subscription(name="billing")
    failed(one, 3)
    page = text(admin_client.post(LIST, {**asked(one), "count": "1"}))
    assert "3 deliveries are sent again, with the webhook-id they had" in page
    assert "billing: 3 deliveries" in page
    assert replayed(admin_client, LIST, asked(one)) == (
        [],
        ["3 deliveries are being sent again."],
    )
    assert statuses(one) == {"pending": 3}


def test_a_large_replay_is_estimated_and_done_in_parts_while_the_page_is_open(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_subscription(name="billing")
    failed(one, 11)
    url = f"{LIST}{one.pk}/replay/"
    sent = {key: value for key, value in asked(one).items() if not key.startswith(("act", "_"))}
    page = text(admin_client.post(url, {**sent, "count": "1"}))
    assert re.search("About [0-9]+ deliver(y is|ies are) sent again", page)
    assert "4 at a time, while the next page is open" in page
    page = text(admin_client.post(url, {**sent, "topic": "test.a", "count": "1"}))
    assert "looked at, and those of the topic are sent again" in page
    assert statuses(one) == {"failed": 11}
    monkeypatch.setattr(acts, "_count", pytest.fail)  # not once more with each part
    pages, messages = replayed(admin_client, url, sent)
    assert [page.partition("So far, ")[2][:12] for page in pages] == [
        "4 deliveries",
        "8 deliveries",
    ]
    assert messages == ["11 deliveries are being sent again."]
    assert statuses(one) == {"pending": 11}
    [entry] = AuditEntry.objects.filter(action="replayed")
    assert (entry.detail["count"], entry.via) == (11, "admin")


def test_an_estimate_is_no_less_than_what_was_counted(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_subscription(name="billing")
    failed(one, 11)
    monkeypatch.setattr(acts, "estimated_rows", lambda _: 1)
    page = text(admin_client.post(LIST, {**asked(one), "count": "1"}))
    assert "About 5 deliveries are sent again" in page
    assert "billing: about 5 deliveries" in page


def test_the_time_is_looked_for_once_for_all_that_are_chosen(admin_client: Client) -> None:
    chosen = [make_subscription() for _ in range(3)]
    failed(chosen[0], 1)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        page = text(admin_client.post(LIST, {**asked(*chosen), "count": "1"}))
    assert "3 deliveries are sent again" in page
    assert sum("WITH RECURSIVE search" in one["sql"] for one in queries) == 1


def test_an_act_on_what_is_deleted_in_between_says_so(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_subscription()
    failed(one, 1)
    delivery = f"/admin/deliveries/delivery/{Delivery.objects.get().pk}"
    monkeypatch.setattr(QuerySet, "__getitem__", lambda *_: [])
    for page in (f"{LIST}{one.pk}/pause/", f"{LIST}{one.pk}/rotate-secret/", f"{delivery}/resend/"):
        response = admin_client.get(page)
        assert response.status_code == 302
        *_, message = get_messages(response.wsgi_request)
        assert str(message) == "Nothing was done: it was just deleted."


def test_as_many_as_can_be_chosen_can_be_confirmed(admin_client: Client) -> None:
    Subscription.objects.bulk_create(
        Subscription(name=str(n), url="https://example.com/", topic_patterns=["a"])
        for n in range(MAX_CHOSEN)
    )
    all_of_them = {"action": "pause", "_selected_action": ["x"], "select_across": "1"}
    asks = admin_client.post(LIST, all_of_them)
    sent = {
        "action": "pause",
        "_selected_action": [str(one.pk) for one in asks.context["chosen"]],
        "confirmed": "1",
        "csrfmiddlewaretoken": "x",
    }
    assert admin_client.post(LIST, sent).status_code == 302
    assert not Subscription.objects.filter(enabled=True).exists()


def test_a_replay_of_several_goes_on_with_the_next_and_holds_what_cannot_go(
    admin_client: Client,
) -> None:
    first, tripped, third = (make_subscription(topic_patterns=["test.a"]) for _ in range(3))
    failed(first, 5)
    trip(tripped)
    pages, messages = replayed(admin_client, LIST, asked(first, tripped, third))
    assert len(pages) == 3
    assert messages == [
        "10 deliveries are being sent again. 5 are held until the subscription is active again."
    ]
    assert [statuses(one) for one in (first, tripped, third)] == [
        {"pending": 5},
        {"held": 5},
        {"pending": 5},
    ]
    assert AuditEntry.objects.filter(action="replayed").count() == 3


def test_a_subscription_that_is_deleted_meanwhile_ends_nobody_elses_replay(
    admin_client: Client,
) -> None:
    first, second = make_subscription(), make_subscription()
    failed(first, 5)
    sent = {**asked(first, second), "confirmed": "1"}
    response = admin_client.post(LIST, sent)
    first.delete()
    replayed(admin_client, LIST, {**sent, "going_on": response.context["done"].going_on})
    assert statuses(second) == {"pending": 5}


def test_a_page_that_was_tampered_with_replays_nothing(
    admin_client: Client,
) -> None:
    one = make_subscription()
    failed(one, 1)
    for token in ("nonsense", "WyJ4Il0:1:2"):
        sent = {**asked(one), "confirmed": "1", "going_on": token}
        assert "this page is not what was shown" in text(admin_client.post(LIST, sent))
    assert statuses(one) == {"failed": 1}


def test_a_replay_is_narrowed_by_topic_and_time_and_to_failures(admin_client: Client) -> None:
    one = make_subscription()
    failed(one, 2, "test.a")
    failed(one, 1, "test.b")
    Delivery.objects.filter(pk=Delivery.objects.earliest("id").pk).update(status="succeeded")
    for changes, number in (
        ({}, 2),
        ({"failed_only": ""}, 3),
        ({"topic": "test.b"}, 1),
        ({"since": exact(timezone.now() + timedelta(hours=1)).removesuffix(" UTC")}, 0),
    ):
        page = text(admin_client.post(LIST, {**asked(one, **changes), "count": "1"}))
        assert f"{number} {'delivery is' if number == 1 else 'deliveries are'} sent again" in page


def test_what_waits_is_counted_so_far_as_a_page_can_wait(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_subscription()
    for _ in range(3):
        publish("test.a", {})
    url = f"{LIST}{one.pk}/change/"
    for page in (LIST, url):
        assert ">3</a> / 0" in text(admin_client.get(page))
    monkeypatch.setattr("deliveries.admin.subscriptions.COUNTED", 2)
    monkeypatch.setattr("deliveries.admin.subscriptions.COUNTED_OF_ONE", 3)
    assert ">2+</a> / 0" in text(admin_client.get(LIST))
    assert ">3+</a> / 0" in text(admin_client.get(url))
    assert "3 pending deliveries are held" in text(admin_client.get(f"{LIST}{one.pk}/pause/"))


def test_the_page_of_one_needs_as_many_queries_however_much_there_is(admin_client: Client) -> None:
    one = make_subscription()
    url = f"{LIST}{one.pk}/change/"

    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert admin_client.get(url).status_code == 200
        return len(captured)

    failed(one, 1)
    few = queries()
    assert few <= 20
    failed(one, 12)
    trip(one)
    publish("test.a", {})
    for _ in range(3):
        one.rotate_secret()
    assert queries() <= few
