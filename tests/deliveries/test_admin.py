"""The admin of events, deliveries and attempts, and what it adds to that of subscriptions."""

from __future__ import annotations

import html
import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.db.models import QuerySet
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.http import urlencode

from deliveries import publish
from deliveries.admin import history as module
from deliveries.admin import pagination
from deliveries.admin.pagination import EstimatingPaginator
from deliveries.holding import hold
from deliveries.keeping import keyset
from deliveries.keeping import replay as replaying
from deliveries.keeping.replay import Chosen, replay_chosen
from deliveries.models import Attempt, Delivery, Event, Lane
from deliveries.sending import send_test as send_test_module
from deliveries.transport import Transport
from subscriptions import audit, circuit
from subscriptions.models import Subscription, TripFuse
from subscriptions.times import exact
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription, make_subscription_with_secret, statuses
from tests.subscriptions.test_commands import trip
from webhooks_project.receiver import Answer, Receiver

# Static files are found in the apps; nobody has collected them here.
pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),
]

EVENTS = "/admin/deliveries/event/"
DELIVERIES = "/admin/deliveries/delivery/"
ATTEMPTS = "/admin/deliveries/attempt/"
SUBSCRIPTIONS = "/admin/subscriptions/subscription/"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def listed(client: Client, url: str, **query: Any) -> list[Any]:
    return list(client.get(url, query).context["cl"].result_list)


def text(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return html.unescape(response.content.decode())


def attempted(delivery_id: int, **fields: Any) -> Attempt:
    return Attempt.objects.create(
        **{
            "delivery_id": delivery_id,
            "number": 1,
            "outcome": "http",
            "status_code": 503,
            "error": "503 Service Unavailable",
            "response_body": "<h1>busy</h1>",
            "started_at": timezone.now(),
            "duration_ms": 1234,
            **fields,
        }
    )


@pytest.fixture
def deliveries() -> list[Delivery]:
    """Three deliveries of three events to one subscription, newest first."""
    make_subscription(name="billing")
    for number in range(3):
        publish("test.created", {"n": number, "note": "<script>alert(1)</script>"})
    return list(Delivery.objects.order_by("-id"))


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


# Pages, and what narrows them.


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


# What an operator does asks first.


def act(client: Client, action: str, *chosen: int, **fields: str) -> Any:
    return client.post(
        DELIVERIES, {"action": action, "_selected_action": [str(one) for one in chosen], **fields}
    )


def acted(client: Client, action: str, *chosen: int) -> list[str]:
    response = act(client, action, *chosen, confirmed="1")
    assert response.status_code == 302
    return [str(message) for message in get_messages(response.wsgi_request)]


def test_sending_again_says_what_is_sent_held_and_left_alone(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    tripped = make_subscription(topic_patterns=["other"])
    publish("other", {})
    finish("failed")
    trip(tripped)
    publish("test.created", {})
    chosen = list(Delivery.objects.values_list("pk", flat=True))
    asked = html.unescape(act(admin_client, "resend", *chosen).content.decode())
    assert "4 deliveries are sent again" in asked
    assert "1 of those chosen is pending or held already" in asked
    assert Delivery.objects.filter(status="failed").count() == 4
    assert acted(admin_client, "resend", *chosen) == [
        "3 deliveries will be sent again now. 1 delivery is held until the subscription is active "
        "again. 1 delivery was left as it is: open already, or the subscription was deleted or is "
        "not for all tenants now.",
    ]
    assert Delivery.objects.filter(status="pending").count() == 4


def test_discarding_deliveries_asks_first_and_can_be_taken_back(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    one, two = deliveries[:2]
    finish("succeeded", pk=two.pk)
    address = f"{DELIVERIES}{one.pk}/discard/"
    assert "1 delivery is discarded, and not sent." in text(admin_client, address)
    assert Delivery.objects.get(pk=one.pk).status == "pending"
    assert "Nothing to do" in text(admin_client, f"{DELIVERIES}{two.pk}/discard/")
    assert acted(admin_client, "discard", one.pk, two.pk) == [
        "1 delivery was discarded. 1 delivery was left as it is: finished already."
    ]
    page = f"{DELIVERIES}{one.pk}/change/"
    assert "discarded by an operator. It can be sent again." in text(admin_client, page)
    assert (
        admin_client.post(f"{DELIVERIES}{one.pk}/resend/", {"confirmed": "1"})["Location"] == page
    )
    assert Delivery.objects.get(pk=one.pk).status == "pending"
    told = text(admin_client, page)
    assert told.index("Discarded") < told.index("Sent again") < told.index("Attempt 1 is due")
    assert told.count("By admin (Admin).") == 2


def test_a_replay_of_many_is_in_the_story_of_what_it_sent_again(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    one = deliveries[0]
    attempted(one.pk, status_code=404)
    topic, since = one.event.topic, timezone.now() - timedelta(hours=1)
    wrong: list[dict[str, Any]] = [{"topic": "other"}, {"until": since}, {"since": timezone.now()}]
    for others in wrong:
        audit.record("replayed", [Chosen(one.subscription, ["failed"], **others).audited(0)])
    page = f"{DELIVERIES}{one.pk}/change/"
    assert "Sent again" not in text(admin_client, page)
    finish("failed")
    list(replay_chosen(Chosen(one.subscription, ["failed"], since=since, topic=topic)))
    told = text(admin_client, page)
    assert told.count("Sent again") == 1
    assert told.index("404 is not tried again") < told.index("Sent again")


def test_too_many_at_once_are_refused(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REPLAYED", 2)
    ids = finish("failed")
    [message] = acted(admin_client, "resend", *ids)
    assert "nothing was done" in message
    assert not Delivery.objects.filter(status="pending").exists()


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


# What is added to the admin of subscriptions.


def test_the_list_of_subscriptions_counts_what_waits(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    tripped = make_subscription(topic_patterns=["other"])
    trip(tripped)
    publish("other", {})
    subscription = Subscription.objects.get(name="billing")
    page = text(admin_client, SUBSCRIPTIONS)
    assert f'subscription={subscription.pk}&status__exact=pending" title="">3</a> / 0' in page
    assert f'0 / <a href="{DELIVERIES}?subscription={tripped.pk}&status__exact=held"' in page


@pytest.fixture
def receiver(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    configure(allowed_networks=LOOPBACK)
    transport = Transport(timeout=2, allowed_networks=LOOPBACK)
    monkeypatch.setattr(send_test_module, "transport", lambda: transport)
    with Receiver(respond=lambda one: Answer(200 if "good" in one.header("X-Is") else 500)) as it:
        yield it
    transport.close(1)


def test_test_events_tell_their_answers(admin_client: Client, receiver: Receiver) -> None:
    good, secret = make_subscription_with_secret(
        name="good", url=receiver.url, headers={"X-Is": "good"}
    )
    bad = make_subscription(name="bad", url=receiver.url)
    trip(bad)
    response = admin_client.post(
        SUBSCRIPTIONS,
        {
            "action": "send_test",
            "_selected_action": [str(good.pk), str(bad.pk)],
            "confirmed": "1",
        },
    )
    answers = {str(one): tested.status_code for one, tested in response.context["answers"]}
    assert answers == {"bad": 500, "good": 200}
    told = response.content.decode()
    assert {one.topic for one in receiver.received} == {"webhooks.test"}
    assert secret not in str(told)
    assert not Attempt.objects.exists()


def test_the_button_sends_one_test_event(admin_client: Client, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url, headers={"X-Is": "good"})
    page = f"{SUBSCRIPTIONS}{subscription.pk}/"
    assert "Send a test event" in text(admin_client, f"{page}change/")
    assert "1 test event is sent now" in text(admin_client, f"{page}send-test/")
    assert receiver.count == 0
    response = admin_client.post(f"{page}send-test/", {"confirmed": "1"})
    told = response.content.decode()
    assert '<span class="chip chip-good">200</span>' in told
    assert f'href="{page}change/"' in told
    assert f'href="{page}reset/"' not in told
    assert receiver.count == 1


def test_a_test_event_that_succeeds_leads_to_the_reset_of_a_tripped_circuit(
    admin_client: Client, receiver: Receiver
) -> None:
    good = make_subscription(url=receiver.url, headers={"X-Is": "good"})
    bad = make_subscription(url=receiver.url)
    for one, leads in ((good, True), (bad, False)):
        trip(one)
        page = f"{SUBSCRIPTIONS}{one.pk}/"
        told = admin_client.post(f"{page}send-test/", {"confirmed": "1"}).content.decode()
        assert (f'href="{page}reset/"' in told) == leads


def test_too_many_test_events_are_refused(
    admin_client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deliveries.admin.subscriptions.MAX_TESTS", 1)
    chosen = [make_subscription(url=receiver.url) for _ in range(2)]
    admin_client.post(
        SUBSCRIPTIONS,
        {
            "action": "send_test",
            "_selected_action": [str(c.pk) for c in chosen],
            "confirmed": "1",
        },
    )
    assert receiver.count == 0


# Backing off.


def back_off(subscription: Subscription) -> Lane:
    """As after three failed attempts, the last of which asked for four minutes."""
    return Lane.objects.create(
        subscription=subscription,
        failures=3,
        resume_at=timezone.now() + timedelta(minutes=4),
        backoff_reason="its answer asks for it: 503 Busy",
    )


def test_what_backs_off_says_until_when_and_why_wherever_it_is_shown(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    lane = back_off(subscription)
    assert lane.resume_at is not None
    told = f"acking off until {lane.resume_at:%Y-%m-%d %H:%M:%S} UTC, because its answer asks "
    for page in (
        DELIVERIES,
        f"{DELIVERIES}{deliveries[0].pk}/change/",
        SUBSCRIPTIONS,
        f"{SUBSCRIPTIONS}{subscription.pk}/change/",
    ):
        assert f"{told}for it: 503 Busy (3 failed attempts in a row)" in text(admin_client, page), (
            page
        )


def test_a_backoff_that_is_over_is_not_shown(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    back_off(Subscription.objects.get())
    Lane.objects.update(resume_at=timezone.now())
    for page in (DELIVERIES, SUBSCRIPTIONS):
        assert "acking off" not in text(admin_client, page)


def test_what_is_due_after_the_backoff_shows_its_own_time(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    back_off(Subscription.objects.get())
    Delivery.objects.update(next_attempt_at=timezone.now() + timedelta(hours=1, seconds=20))
    page = text(admin_client, DELIVERIES)
    assert page.count(">in 1 h</time>") == 3
    assert "acking off" not in page


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (lambda one: one.update(enabled=False), "its subscription is paused"),
        (lambda one: one.delete(), "its subscription was deleted"),
    ],
)
def test_what_is_pending_although_nothing_is_sent_is_not_due_now(
    admin_client: Client, deliveries: list[Delivery], stop: Callable[[Any], Any], why: str
) -> None:
    """Until the sweep has held or discarded it."""
    stop(QuerySet(Subscription))
    Delivery.objects.update(
        status="pending", next_attempt_at=timezone.now(), finished_at=None, held_at=None
    )
    page = text(admin_client, DELIVERIES)
    assert page.count(f"none: {why}") == 3


def test_the_list_says_that_the_fuse_is_blown(admin_client: Client) -> None:
    assert "fuse" not in text(admin_client, SUBSCRIPTIONS)
    TripFuse.objects.update_or_create(pk=1, defaults={"blown_at": timezone.now()})
    assert "The fuse is blown since 20" in text(admin_client, SUBSCRIPTIONS)


# What ends deliveries says how many, and asks.


def test_discarding_asks_first_and_says_how_many(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription, other = Subscription.objects.get(), make_subscription(topic_patterns=["x"])
    trip(subscription)
    hold([subscription.pk])
    sent = {
        "action": "reset_circuit",
        "_selected_action": [str(subscription.pk), str(other.pk)],
    }
    response = admin_client.post(SUBSCRIPTIONS, sent)
    page = html.unescape(response.content.decode())
    assert "1 circuit is reset; 3 held deliveries will be sent or discarded" in page
    assert "billing: 3 held" in page
    assert "1 of those chosen is not tripped" in page
    assert statuses(subscription) == {"held": 3}
    response = admin_client.post(SUBSCRIPTIONS, {**sent, "confirmed": "1", "held": "discard"})
    assert [str(message) for message in get_messages(response.wsgi_request)] == [
        "1 circuit was reset. What was held is discarded.",
        "1 of those chosen was not tripped.",
    ]
    assert statuses(subscription) == {"discarded": 3}


def test_nothing_is_asked_where_nothing_is_tripped(admin_client: Client) -> None:
    subscription = make_subscription()
    response = admin_client.post(
        SUBSCRIPTIONS,
        {"action": "reset_circuit", "_selected_action": [str(subscription.pk)]},
    )
    assert "Nothing to do: of those chosen, all are not tripped" in response.content.decode()


def test_deleting_says_how_many_deliveries_are_discarded(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    finish("succeeded", timedelta(), pk=deliveries[0].pk)
    told = "ending and held deliveries, which are discarded (and stay listed): 2"
    assert told in text(admin_client, f"{SUBSCRIPTIONS}{subscription.pk}/delete/")
    response = admin_client.post(
        SUBSCRIPTIONS, {"action": "delete_selected", "_selected_action": [str(subscription.pk)]}
    )
    assert told in response.content.decode()
    assert Subscription.objects.exists()


def test_deleting_a_subscription_keeps_what_was_delivered(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    finish("succeeded", timedelta(), pk=deliveries[0].pk)
    admin_client.post(f"{SUBSCRIPTIONS}{subscription.pk}/delete/", {"post": "yes"})
    assert not Subscription.objects.exists()
    assert sorted(Delivery.objects.values_list("status", flat=True)) == [
        "discarded",
        "discarded",
        "succeeded",
    ]


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


@pytest.mark.parametrize("key", ["9" * 23, "nonsense", "%00"])
def test_an_act_on_what_no_row_can_be_is_no_error(admin_client: Client, key: str) -> None:
    page = f"{DELIVERIES}{key}/resend/"
    assert admin_client.post(page, follow=True).status_code in (200, 404)


def test_an_action_is_for_what_was_chosen_whatever_the_list_shows_by_now(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    one, two = deliveries[:2]
    sent = {"action": "discard", "_selected_action": [one.pk], "confirmed": "1"}
    for address in ("?status__exact=failed", "?since=yesterday"):
        assert admin_client.post(DELIVERIES + address, sent).status_code == 302
    assert Delivery.objects.get(pk=one.pk).status == "discarded"
    admin_client.post(DELIVERIES, {**sent, "_selected_action": [two.pk], "select_across": "1"})
    assert set(Delivery.objects.exclude(pk=one.pk).values_list("status", flat=True)) == {"pending"}


@pytest.mark.parametrize("chosen", ["nonsense", "9" * 30, "\0"])
def test_an_action_on_what_is_no_id_does_nothing(admin_client: Client, chosen: str) -> None:
    response = admin_client.post(
        DELIVERIES, {"action": "resend", "_selected_action": [chosen]}, follow=True
    )
    assert response.status_code == 200


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
