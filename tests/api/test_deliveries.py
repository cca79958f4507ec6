"""`/deliveries`: listed, read, sent again, discarded."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import combinations_with_replacement
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from django.utils import timezone

from deliveries import publish, publish_many
from deliveries.keeping import keyset
from deliveries.models import Attempt, Delivery, Event
from subscriptions import circuit
from subscriptions.secrets import crypto
from tests.api.calls import Caller, is_problem
from tests.factories import make_subscription

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nobody_is_woken")]

DELIVERIES = "/api/v1/deliveries"
STATUSES = ("pending", "held", "succeeded", "failed", "discarded")


@pytest.fixture
def application() -> Caller:
    return Caller("deliveries:read", "deliveries:write")


@pytest.fixture
def acme() -> Caller:
    return Caller("deliveries:read", "deliveries:write", tenant="acme")


def listed(caller: Caller, **query: Any) -> list[dict[str, Any]]:
    """All pages."""
    rows: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        asked = {**query, **({"cursor": cursor} if cursor else {})}
        response = caller.call("GET", f"{DELIVERIES}?{urlencode(asked)}")
        assert response.status_code == 200, response.content
        rows += response.data["data"]
        cursor = response.data["next_cursor"]
    return rows


def ids(caller: Caller, **query: Any) -> list[int]:
    return [row["id"] for row in listed(caller, **query)]


def become(delivery: Delivery | int, status: str) -> None:
    finished = status not in ("pending", "held")
    Delivery.objects.filter(pk=getattr(delivery, "pk", delivery)).update(
        status=status,
        next_attempt_at=timezone.now() if status == "pending" else None,
        held_at=timezone.now() if status == "held" else None,
        finished_at=timezone.now() if finished else None,
    )


@pytest.fixture
def various(transactional_db: None) -> list[Delivery]:
    """For two subscriptions of a tenant and one for all, one delivery of each status and topic."""
    for tenant in ("acme", "acme", ""):
        make_subscription(tenant=tenant, all_tenants=not tenant)
    for number, status in enumerate(STATUSES):
        event = publish(f"test.{number % 2}", {}, event_id=status, tenant="acme")
        for delivery in event.deliveries.all():
            become(delivery, status)
    return list(Delivery.objects.order_by("-id"))


def test_a_row_says_what_became_of_an_event(application: Caller, various: list[Delivery]) -> None:
    newest = various[0]
    row = listed(application)[0]
    assert row == {
        "id": newest.pk,
        "event": "discarded",
        "topic": "test.0",
        "subscription": str(newest.subscription_id),
        "tenant": newest.tenant,
        "status": "discarded",
        "next_attempt_at": None,
        "attempt_count": 0,
        "last_error": "",
        "created_at": row["created_at"],
        "held_at": None,
        "finished_at": row["finished_at"],
    }
    assert datetime.fromisoformat(row["created_at"]) <= newest.created_at


@pytest.mark.parametrize("limit", [1, 4, 50])
def test_every_filter_with_every_other(
    limit: int, application: Caller, acme: Caller, various: list[Delivery]
) -> None:
    subscription = various[0].subscription_id
    middle = Event.objects.get(pk="succeeded").created_at
    topics = dict(Event.objects.values_list("pk", "topic"))
    filters: dict[str, tuple[Any, Any]] = {
        "subscription": (subscription, lambda one: one.subscription_id == subscription),
        "event": ("held", lambda one: one.event_id == "held"),
        "topic": ("test.1", lambda one: topics[one.event_id] == "test.1"),
        "tenant": ("acme", lambda one: one.tenant == "acme"),
        "since": (middle.isoformat(), lambda one: one.created_at >= middle),
        "until": (middle.isoformat(), lambda one: one.created_at < middle),
    }
    for status in (None, *STATUSES):
        for pair in combinations_with_replacement(filters, 2):
            query = {name: filters[name][0] for name in pair}
            wanted = [
                one
                for one in various
                if status in (None, one.status) and all(filters[name][1](one) for name in pair)
            ]
            if status:
                query["status"] = status
            found = ids(application, limit=limit, **query)
            assert sorted(found) == sorted(one.pk for one in wanted), query
            if status not in ("pending", "held"):
                assert found == sorted(found, reverse=True)
            mine = [one.pk for one in wanted if one.tenant == "acme"]
            assert sorted(ids(acme, limit=limit, **query)) == sorted(mine), query


def test_a_tenant_sees_its_own_alone(
    application: Caller, acme: Caller, various: list[Delivery]
) -> None:
    own = {one.pk for one in various if one.tenant == "acme"}
    others = [one for one in various if one.pk not in own]
    assert own
    assert set(ids(acme)) == own
    assert ids(acme, tenant="") == ids(acme, tenant="other") == []
    assert set(ids(application, tenant="")) == {one.pk for one in others}
    assert ids(acme, subscription=others[0].subscription_id) == []
    for path, method in (("", "GET"), ("/resend", "POST"), ("/discard", "POST")):
        for one in others:
            response = acme.call(method, f"{DELIVERIES}/{one.pk}{path}")
            is_problem(response, 404, "not-found")
    assert {one.status for one in Delivery.objects.filter(tenant="")} == set(STATUSES)


def test_pages_stay_right_while_rows_are_added(application: Caller) -> None:
    make_subscription()
    publish_many([{"topic": "test.one", "payload": {}} for _ in range(40)])
    old = set(Delivery.objects.values_list("pk", flat=True))
    for query in ({}, {"topic": "test.one"}, {"status": "pending"}):
        seen, cursor = [], ""
        while cursor is not None:
            asked = {"limit": 7, **query, **({"cursor": cursor} if cursor else {})}
            page = application.call("GET", f"{DELIVERIES}?{urlencode(asked)}").data
            seen += [row["id"] for row in page["data"]]
            cursor = page["next_cursor"]
            publish_many([{"topic": "test.one", "payload": {}} for _ in range(3)])
            if len(seen) > 300:
                break
        assert len(seen) == len(set(seen))
        assert old <= set(seen)


def test_pages_of_what_is_open_go_by_subscription(application: Caller) -> None:
    """As its indexes do: the oldest held first, and of the pending what is due first."""
    for _ in range(3):
        make_subscription()
    for number in range(5):
        publish("test.one", {}, event_id=f"e{number}")
    for number, one in enumerate(Delivery.objects.order_by("id")):
        due = timezone.now() + timedelta(seconds=(7 * number) % 11)
        Delivery.objects.filter(pk=one.pk).update(next_attempt_at=due)
    wanted = Delivery.objects.order_by("subscription_id", "next_attempt_at", "id")
    assert ids(application, status="pending", limit=4) == [one.pk for one in wanted]
    Delivery.objects.update(status="held", next_attempt_at=None)
    wanted = Delivery.objects.order_by("subscription_id", "id")
    assert ids(application, status="held", limit=4) == [one.pk for one in wanted]


def test_a_page_looks_at_no_more_than_so_many_rows(
    application: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_subscription()
    publish("test.rare", {}, event_id="rare")
    Delivery.objects.update(status="succeeded", next_attempt_at=None, finished_at=timezone.now())
    publish_many([{"topic": "test.one", "payload": {}} for _ in range(30)])
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 10)
    page = application.call("GET", f"{DELIVERIES}?status=succeeded&limit=1").data
    assert page["data"] == []
    assert page["next_cursor"]
    for query in ({"status": "succeeded"}, {"topic": "test.rare"}):
        assert [row["event"] for row in listed(application, **query)] == ["rare"]
    assert len(listed(application, topic="test.one", limit=3)) == 30
    assert len(listed(application, topic="test.one", limit=20)) == 30


def test_pages_go_on_when_the_topic_gets_more_events_than_are_looked_at(
    application: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_subscription(tenant="acme")
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 10)
    drafts = [{"topic": "test.one", "payload": {}, "tenant": "acme"} for _ in range(10)]
    publish_many(drafts)
    expected = list(Delivery.objects.order_by("-id").values_list("id", flat=True))
    query = f"{DELIVERIES}?topic=test.one&tenant=acme&limit=4"
    page = application.call("GET", query).data
    found = page["data"]
    publish_many(drafts)
    while page["next_cursor"]:
        answer = application.call("GET", f"{query}&cursor={quote(page['next_cursor'])}")
        assert answer.status_code == 200
        page = answer.data
        found += page["data"]
    assert [one["id"] for one in found] == expected
    assert application.call("GET", f"{query}&cursor=x").status_code == 422


@pytest.mark.parametrize("path", ["events", "deliveries", "deliveries?status=pending"])
def test_a_cursor_tells_nothing_of_a_strangers_rows(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a page ends may be anybody's row."""
    publish("test.own", {})
    one = make_subscription(tenant="acme")
    ids = [f"{n:03}".ljust(255, "x") for n in range(30)]
    publish_many(
        [{"topic": "test.one", "payload": {}, "tenant": "acme", "event_id": id} for id in ids]
    )
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 10)
    own = Caller("deliveries:read", tenant="")
    query, pages_seen = {"limit": "1"}, 0
    while True:
        page = own.call(
            "GET", f"/api/v1/{path}{'&' if '?' in path else '?'}{urlencode(query)}"
        ).data
        if (cursor := page["next_cursor"]) is None:
            break
        pages_seen += 1
        assert len(cursor) <= 2000
        for text in (cursor.encode(), base64.urlsafe_b64decode(cursor + "==")):
            for trace in (b"x" * 10, str(one.pk).encode()):
                assert trace not in text, text
        query["cursor"] = cursor
    assert pages_seen >= 3


def test_a_cursor_that_was_altered_is_422(application: Caller) -> None:
    make_subscription()
    publish_many([{"topic": "test.one", "payload": {}} for _ in range(2)])
    cursor = application.call("GET", f"{DELIVERIES}?limit=1").data["next_cursor"]
    assert application.call("GET", f"{DELIVERIES}?limit=1&cursor={cursor}").status_code == 200
    plain = base64.urlsafe_b64encode(json.dumps([str(Delivery.objects.latest("id").pk)]).encode())
    altered = cursor[:-6] + ("AAAA" if cursor[-6:-2] != "AAAA" else "BBBB") + cursor[-2:]
    for bad in (plain.decode(), altered, cursor[:-1], crypto.encrypt(b"whsec_"), "é"):
        response = application.call("GET", f"{DELIVERIES}?limit=1&cursor={quote(bad)}")
        is_problem(response, 422, "bad-cursor")


def test_times_are_found_by_ids(application: Caller) -> None:
    """Also where a long transaction gave an old time to a new id."""
    make_subscription()
    publish_many([{"topic": "test.one", "payload": {}} for _ in range(200)])
    start = datetime(2026, 1, 1, tzinfo=UTC)
    deliveries = list(Delivery.objects.order_by("id"))
    for number, one in enumerate(deliveries):
        one.created_at = start + timedelta(minutes=number)
        if number % 7 == 0:
            one.created_at -= timedelta(minutes=9)
    Delivery.objects.bulk_update(deliveries, ["created_at"])
    deliveries[50].delete()
    for first, last in ((0, 200), (40, 60), (49, 51), (100, 100), (-50, 500), (180, 900)):
        since, until = start + timedelta(minutes=first), start + timedelta(minutes=last)
        wanted = Delivery.objects.filter(created_at__gte=since, created_at__lt=until)
        found = ids(application, since=since.isoformat(), until=until.isoformat(), limit=30)
        assert found == list(wanted.order_by("-id").values_list("pk", flat=True))


def test_a_delivery_with_its_attempts(application: Caller) -> None:
    make_subscription()
    publish("test.one", {}, event_id="e")
    delivery = Delivery.objects.get()
    for number in (1, 2):
        Attempt.objects.create(
            delivery=delivery,
            number=number,
            outcome="http" if number == 2 else "timeout",
            status_code=500 if number == 2 else None,
            error="HTTP 500",
            response_body="oh",
            remote_address="203.0.113.7",
            started_at=timezone.now(),
            duration_ms=17,
        )
    found = application.call("GET", f"{DELIVERIES}/{delivery.pk}").data
    assert (found["event"], found["topic"], found["status"]) == ("e", "test.one", "pending")
    second, first = found["attempts"]
    assert (first["number"], first["outcome"], first["status_code"]) == (1, "timeout", None)
    assert (second["number"], second["outcome"], second["status_code"]) == (2, "http", 500)
    assert (second["response_body"], second["duration_ms"]) == ("oh", 17)


def test_the_delivery_of_an_event_that_was_pruned(application: Caller) -> None:
    make_subscription()
    publish("test.one", {}).delete()
    (row,) = listed(application)
    assert row["topic"] is None
    assert application.call("GET", f"{DELIVERIES}/{row['id']}").data["topic"] is None


@pytest.mark.parametrize("status", ["succeeded", "failed", "discarded"])
def test_what_is_finished_is_sent_again(status: str, application: Caller) -> None:
    subscription = make_subscription()
    publish("test.one", {})
    delivery = Delivery.objects.get()
    become(delivery, status)
    response = application.call("POST", f"{DELIVERIES}/{delivery.pk}/resend")
    assert (response.status_code, response.data["status"]) == (202, "pending")
    assert response.data["next_attempt_at"]
    become(delivery, status)
    circuit.pause([subscription.pk])
    response = application.call("POST", f"{DELIVERIES}/{delivery.pk}/resend")
    assert (response.status_code, response.data["status"]) == (202, "held")


@pytest.mark.parametrize("status", ["pending", "held"])
def test_what_is_open_is_not_sent_again(status: str, application: Caller) -> None:
    make_subscription()
    publish("test.one", {})
    delivery = Delivery.objects.get()
    become(delivery, status)
    response = application.call("POST", f"{DELIVERIES}/{delivery.pk}/resend")
    assert status in is_problem(response, 409, "cannot-resend")["detail"]


def test_what_belongs_to_nobody_is_not_sent_again(application: Caller) -> None:
    subscription = make_subscription()
    publish("test.one", {})
    subscription.delete()
    response = application.call("POST", f"{DELIVERIES}/{Delivery.objects.get().pk}/resend")
    assert "deleted" in is_problem(response, 409, "cannot-resend")["detail"]


@pytest.mark.parametrize("status", ["pending", "held"])
def test_what_is_open_is_discarded(status: str, application: Caller) -> None:
    make_subscription()
    publish("test.one", {})
    delivery = Delivery.objects.get()
    become(delivery, status)
    response = application.call("POST", f"{DELIVERIES}/{delivery.pk}/discard")
    assert (response.status_code, response.data["status"]) == (200, "discarded")
    assert "operator" in response.data["last_error"]
    assert response.data["finished_at"]
    response = application.call("POST", f"{DELIVERIES}/{delivery.pk}/discard")
    assert "discarded" in is_problem(response, 409, "cannot-discard")["detail"]


@pytest.mark.parametrize("number", ["1", str(2**63 - 1)])
def test_what_is_not_there(number: str, application: Caller) -> None:
    for path, method in (("", "GET"), ("/resend", "POST"), ("/discard", "POST")):
        response = application.call(method, f"{DELIVERIES}/{number}{path}")
        is_problem(response, 404, "not-found")


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5", str(2**63), "9" * 5000, "%00"])
def test_what_is_no_id(number: str, application: Caller) -> None:
    problem = is_problem(application.call("GET", f"{DELIVERIES}/{number}"), 422, "invalid")
    assert problem["errors"][0]["parameter"] == "delivery_id"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("status=new", "status"),
        ("subscription=x", "subscription"),
        ("event=%00", "event"),
        ("since=now", "since"),
        ("limit=201", "limit"),
        ("cursor=x", "cursor"),
        ("cursor=WyI5OTk5OTk5OTk5OTk5OTk5OTk5OTk5Il0", "cursor"),
        ("status=held&cursor=WyIxIl0", "cursor"),
    ],
)
def test_what_a_list_cannot_be_asked(query: str, parameter: str, application: Caller) -> None:
    response = application.call("GET", f"{DELIVERIES}?{query}")
    assert response.status_code == 422
    assert response.data["errors"][0]["parameter"] == parameter


def test_scopes() -> None:
    reader, publisher = Caller("deliveries:read"), Caller("events:write")
    is_problem(publisher.call("GET", DELIVERIES), 403, "missing-scope")
    is_problem(publisher.call("GET", f"{DELIVERIES}/1"), 403, "missing-scope")
    for action in ("resend", "discard"):
        response = reader.call("POST", f"{DELIVERIES}/1/{action}")
        assert is_problem(response, 403, "missing-scope")["scope"] == "deliveries:write"
