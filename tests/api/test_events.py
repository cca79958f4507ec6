"""`POST /events` and what can be read of events, on real tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext

from api.v1 import events
from deliveries import publish
from deliveries.models import Delivery, Event
from subscriptions import circuit
from tests.api.calls import Caller, is_problem
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nobody_is_woken")]

EVENTS = "/api/v1/events"
EVENT = {"topic": "test.one", "payload": {"n": 1}}


@pytest.fixture
def application() -> Caller:
    """Sees all tenants."""
    return Caller("events:write", "deliveries:read")


@pytest.fixture
def acme() -> Caller:
    return Caller("events:write", "deliveries:read", tenant="acme")


def test_an_event_is_recorded_and_its_subscriptions_are_counted(application: Caller) -> None:
    active, tripped, paused = (make_subscription() for _ in range(3))
    trip(tripped)
    circuit.pause([paused.pk])
    make_subscription(topic_patterns=["other"])
    response = application.call("POST", EVENTS, {**EVENT, "type": "order"})
    assert response.status_code == 202
    event = Event.objects.get(pk=response.data["id"])
    assert response.data == {
        "id": event.pk,
        "topic": "test.one",
        "type": "order",
        "tenant": "",
        "created_at": json.loads(event.body)["ts"],
        "subscriptions": 2,
        "already_published": False,
    }
    assert event.payload == {"n": 1}
    found = dict(Delivery.objects.values_list("subscription_id", "status"))
    assert found == {active.pk: "pending", tripped.pk: "held"}


def test_an_event_costs_one_statement_besides_the_key(application: Caller) -> None:
    make_subscription()
    application.call("POST", EVENTS, EVENT)  # also writes the last use of the key
    with CaptureQueriesContext(connection) as captured:
        assert application.call("POST", EVENTS, EVENT).data["subscriptions"] == 1
    assert len(captured) == 2


def test_the_answer_comes_after_the_commit(
    application: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def look(**draft: Any) -> Event:
        published = publish(**draft)
        seen.append(connection.in_atomic_block)
        return published

    monkeypatch.setattr(events, "publish", look)
    assert application.call("POST", EVENTS, EVENT).status_code == 202
    assert seen == [False]


def test_what_was_not_recorded_is_not_accepted(
    application: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(**_: Any) -> Event:
        raise OperationalError("terminating connection: secret words")

    monkeypatch.setattr(events, "publish", away)
    response = application.call("POST", EVENTS, EVENT)
    is_problem(response, 503, "unavailable")
    assert int(response["Retry-After"]) > 0
    assert b"secret" not in response.content


@pytest.mark.parametrize("by_header", [False, True])
def test_the_same_again_is_the_first_event(by_header: bool, application: Caller) -> None:
    make_subscription()

    def send(**changed: Any) -> Any:
        body, headers = {**EVENT, **changed}, {}
        if by_header:
            headers["Idempotency_Key"] = "a key, with: ümläuts and blanks"
        else:
            body["id"] = "order-42"
        return application.call("POST", EVENTS, body, **headers)

    first, again = send(), send()
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.data == {**first.data, "already_published": True}
    assert again.data["subscriptions"] == 1
    for changed in ({"payload": {"n": 2}}, {"topic": "test.two"}, {"type": "t"}):
        problem = is_problem(send(**changed), 409, "event-conflict")
        (place,) = problem["errors"]
        del place["detail"]
        assert place == ({"header": "Idempotency-Key"} if by_header else {"pointer": "/id"})
    assert Event.objects.count() == Delivery.objects.count() == 1


def test_one_number_may_be_written_in_two_ways(application: Caller) -> None:
    """What is compared is what is sent to receivers."""
    raw = b'{"topic": "test.one", "id": "x", "payload": {"b": 1, "a": "\\u00e9"}}'
    same = '{"id": "x", "payload": {"a": "é", "b": 1}, "topic": "test.one"}'.encode()
    assert application.call("POST", EVENTS, raw).status_code == 202
    assert application.call("POST", EVENTS, same).status_code == 200


def test_an_id_and_a_key_that_differ(application: Caller) -> None:
    response = application.call("POST", EVENTS, {**EVENT, "id": "a"}, Idempotency_Key="b")
    assert is_problem(response, 422, "invalid")["errors"][0]["pointer"] == "/id"
    response = application.call("POST", EVENTS, {**EVENT, "id": "a"}, Idempotency_Key="a")
    assert (response.status_code, response.data["id"]) == (202, "a")


def test_a_key_of_one_tenant_is_nothing_to_another(acme: Caller, application: Caller) -> None:
    other = Caller("events:write", tenant="other")
    ids = set()
    for caller, body in (
        (acme, EVENT),
        (other, EVENT),
        (application, EVENT),
        (application, {**EVENT, "tenant": "third"}),
    ):
        response = caller.call("POST", EVENTS, body, Idempotency_Key="1")
        assert response.status_code == 202
        ids.add(response.data["id"])
    assert len(ids) == 4
    # Another key of the same tenant: the same request.
    response = application.call("POST", EVENTS, {**EVENT, "tenant": "acme"}, Idempotency_Key="1")
    assert response.status_code == 200


def test_an_id_of_a_stranger_is_taken_and_nothing_is_shown(acme: Caller) -> None:
    publish("secret.topic", {"secret": 1}, event_id="taken", tenant="other")
    publish("test.one", {"n": 1}, event_id="same", tenant="other")
    for event_id in ("taken", "same"):
        response = acme.call("POST", EVENTS, {**EVENT, "id": event_id})
        is_problem(response, 409, "event-conflict")
        assert b"secret" not in response.content
        assert b"other" not in response.content.replace(b"another", b"")


def test_a_key_publishes_for_its_tenant_alone(acme: Caller, application: Caller) -> None:
    make_subscription(tenant="acme")
    make_subscription(tenant="other")
    make_subscription(all_tenants=True)
    response = acme.call("POST", EVENTS, EVENT)
    assert (response.data["tenant"], response.data["subscriptions"]) == ("acme", 1)
    assert Delivery.objects.count() == 2
    response = acme.call("POST", EVENTS, {**EVENT, "tenant": "other"})
    is_problem(response, 403, "other-tenant")
    response = application.call("POST", EVENTS, {**EVENT, "tenant": "other"})
    assert (response.data["tenant"], response.data["subscriptions"]) == ("other", 1)


def test_eight_at_once_with_one_id_make_one_event(
    application: Caller, at_once: Callable[..., list[Any]]
) -> None:
    make_subscription()

    def send(_: int) -> Any:
        caller = Caller(key_text=application.key)
        return caller.call("POST", EVENTS, EVENT, Idempotency_Key="one")

    responses = at_once(send, 8)
    assert sorted(one.status_code for one in responses) == [200] * 7 + [202]
    assert len({one.data["id"] for one in responses}) == 1
    assert {one.data["subscriptions"] for one in responses} == {1}
    assert Event.objects.count() == Delivery.objects.count() == 1


@pytest.mark.parametrize(
    ("changed", "pointer"),
    [
        ({"topic": ""}, "/topic"),
        ({"topic": "test.*"}, "/topic"),
        ({"topic": "a\x00b"}, "/topic"),
        ({"topic": 1}, "/topic"),
        ({"topic": "x" * 256}, "/topic"),
        ({"payload": []}, "/payload"),
        ({"payload": "text"}, "/payload"),
        ({"payload": None}, "/payload"),
        ({"type": "x" * 256}, "/type"),
        ({"type": "a\nb"}, "/type"),
        ({"type": None}, "/type"),
        ({"id": ""}, "/id"),
        ({"id": "a b"}, "/id"),
        ({"id": "x" * 256}, "/id"),
        ({"id": 1}, "/id"),
        ({"tenant": "x" * 65}, "/tenant"),
        ({"tenant": " x"}, "/tenant"),
        ({"tenant": "a\x00"}, "/tenant"),
        ({"unknown": 1}, "/unknown"),
    ],
)
def test_what_publish_refuses_is_named(
    changed: dict[str, Any], pointer: str, application: Caller
) -> None:
    response = application.call("POST", EVENTS, {**EVENT, **changed})
    problem = is_problem(response, 422, "invalid")
    assert [one["pointer"] for one in problem["errors"]] == [pointer]
    assert Event.objects.count() == 0


def test_what_is_missing_is_named(application: Caller) -> None:
    problem = is_problem(application.call("POST", EVENTS, {}), 422, "invalid")
    assert {one["pointer"] for one in problem["errors"]} == {"/topic", "/payload"}


@pytest.mark.parametrize("header", ["", "x" * 256])
def test_a_key_that_is_none(header: str, application: Caller) -> None:
    response = application.call("POST", EVENTS, EVENT, Idempotency_Key=header)
    problem = is_problem(response, 422, "invalid")
    assert problem["errors"][0]["header"].lower() == "idempotency-key"


def test_a_missing_scope_and_a_missing_key() -> None:
    reader = Caller("deliveries:read")
    assert is_problem(reader.call("POST", EVENTS, EVENT), 403, "missing-scope")["scope"]
    is_problem(Caller("events:write").call("GET", EVENTS), 403, "missing-scope")
    is_problem(Caller(key_text="").call("POST", EVENTS, EVENT), 401, "unauthorized")


def test_other_methods(application: Caller) -> None:
    assert "POST" in application.call("PUT", EVENTS, EVENT)["Allow"]
    is_problem(application.call("DELETE", f"{EVENTS}/x"), 405, "method-not-allowed")


def test_lists_of_events_are_narrowed(application: Caller, acme: Caller) -> None:
    start = datetime.now(UTC)
    for number in range(6):
        tenant, topic = ("acme", "")[number % 2], f"t.{number // 2}"
        publish(topic, {}, event_id=f"e{number}", tenant=tenant)
    middle = Event.objects.get(pk="e3").created_at

    def ids(caller: Caller, **query: Any) -> list[str]:
        response = caller.call("GET", f"{EVENTS}?{_query(query)}")
        assert response.status_code == 200
        return [one["id"] for one in response.data["data"]]

    assert ids(application) == ["e5", "e4", "e3", "e2", "e1", "e0"]
    assert ids(acme) == ids(application, tenant="acme") == ["e4", "e2", "e0"]
    assert ids(application, tenant="") == ["e5", "e3", "e1"]
    assert ids(acme, tenant="other") == ids(acme, tenant="") == []
    assert ids(application, topic="t.1") == ["e3", "e2"]
    assert ids(acme, topic="t.1") == ids(application, topic="t.1", tenant="acme") == ["e2"]
    assert ids(application, topic="t.1", tenant="") == ["e3"]
    assert ids(application, since=middle.isoformat()) == ["e5", "e4", "e3"]
    assert ids(application, until=middle.isoformat()) == ["e2", "e1", "e0"]
    assert ids(application, until=start.isoformat()) == []
    for first in ("0001-01-01T00:00:00+14:00", "0352-09-01T18:03:42-18:27"):
        assert ids(application, until=first) == []
    for last in ("9999-12-31T23:59:59-14:00", "2640-11-07T01:56:05+20:44"):
        assert ids(application, since=last) == []
    rows = application.call("GET", f"{EVENTS}?limit=1").data
    assert "payload" not in rows["data"][0]


def _query(query: dict[str, Any]) -> str:
    return "&".join(f"{name}={quote(str(value))}" for name, value in query.items())


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("since=2026-01-01T00:00:00", "since"),
        ("until=yesterday", "until"),
        ("topic=%00", "topic"),
        ("tenant=%00", "tenant"),
        ("cursor=%00", "cursor"),
        ("cursor=e30", "cursor"),
    ],
)
def test_what_a_list_cannot_be_asked(query: str, parameter: str, application: Caller) -> None:
    response = application.call("GET", f"{EVENTS}?{query}")
    assert response.status_code == 422
    assert response.data["errors"][0]["parameter"] == parameter


def test_pages_of_events_of_the_same_moment(application: Caller) -> None:
    now = datetime.now(UTC)
    Event.objects.bulk_create(
        Event(id=f"e{n:03}", topic="t", body=b"{}", created_at=now - timedelta(seconds=n // 10))
        for n in range(45)
    )
    seen, cursor = [], ""
    while cursor is not None:
        page = application.call("GET", f"{EVENTS}?limit=7&{cursor and f'cursor={cursor}'}").data
        seen += [one["id"] for one in page["data"]]
        cursor = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 45


def test_an_event_with_where_it_went(application: Caller, acme: Caller) -> None:
    mine = make_subscription(tenant="acme")
    siem = make_subscription(all_tenants=True)
    publish("test.one", {"a": [1]}, event_type="t", event_id="e:1.x_-", tenant="acme")
    Delivery.objects.filter(subscription=siem).update(status="failed", next_attempt_at=None)
    found = application.call("GET", f"{EVENTS}/e:1.x_-").data
    assert found["payload"] == {"a": [1]}
    assert (found["topic"], found["type"], found["tenant"]) == ("test.one", "t", "acme")
    assert found["counts"] == {"pending": 1, "failed": 1}
    assert {one["subscription"] for one in found["deliveries"]} == {str(mine.pk), str(siem.pk)}
    found = acme.call("GET", f"{EVENTS}/e:1.x_-").data
    assert found["counts"] == {"pending": 1}
    assert [one["subscription"] for one in found["deliveries"]] == [str(mine.pk)]


@pytest.mark.parametrize("event_id", ["nothing", "%00", "%ED%A0%80", "x" * 3000, "other's"])
def test_events_that_are_not_there(event_id: str, acme: Caller) -> None:
    publish("test.one", {}, event_id="strange", tenant="other")
    is_problem(acme.call("GET", f"{EVENTS}/{event_id}"), 404, "not-found")
    is_problem(acme.call("GET", f"{EVENTS}/strange"), 404, "not-found")


def test_every_event_is_read_at_its_own_address(application: Caller) -> None:
    for text in (".", "..", "batch"):
        response = application.call("POST", EVENTS, {**EVENT, "id": text})
        assert is_problem(response, 422, "invalid")["errors"][0]["pointer"] == "/id"
    for text in ("batches", "...", "a:b"):
        assert application.call("POST", EVENTS, {**EVENT, "id": text}).status_code == 202
        assert application.call("GET", f"{EVENTS}/{text}").data["id"] == text
