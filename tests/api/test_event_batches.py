"""`POST /events/batch`: all of them or none, and each that is refused is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from deliveries import publish
from deliveries.models import Delivery, Event
from tests.api.calls import Caller, is_problem
from tests.factories import make_subscription

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nobody_is_woken")]

BATCH = "/api/v1/events/batch"


def event(number: int = 0, **changed: Any) -> dict[str, Any]:
    return {"topic": "test.one", "payload": {"n": number}, **changed}


@pytest.fixture
def application() -> Caller:
    return Caller("events:write")


def send(caller: Caller, *events: Any, **headers: str) -> Any:
    return caller.call("POST", BATCH, {"events": list(events)}, **headers)


def pointers(response: Any, status: int = 422, type: str = "invalid") -> list[str]:
    return [one["pointer"] for one in is_problem(response, status, type)["errors"]]


def test_a_thousand_are_recorded_in_their_order(application: Caller) -> None:
    make_subscription()
    make_subscription(topic_patterns=["test.one"])
    topics = ["test.one", "test.two", "nobody.wants.this"]
    events = [event(n, topic=topics[n % 3], id=f"e{n}") for n in range(1000)]
    response = send(application, *events)
    assert response.status_code == 202
    found = response.data["data"]
    assert [one["id"] for one in found] == [f"e{n}" for n in range(1000)]
    assert [one["subscriptions"] for one in found[:3]] == [2, 1, 0]
    assert not any(one["already_published"] for one in found)
    assert (Event.objects.count(), Delivery.objects.count()) == (1000, 334 * 2 + 333)


def test_a_batch_costs_one_statement_besides_the_key(application: Caller) -> None:
    make_subscription()
    send(application, event())
    with CaptureQueriesContext(connection) as captured:
        send(application, *(event(n) for n in range(100)))
    assert len(captured) == 2


@pytest.mark.parametrize("count", [0, 1001])
def test_too_few_and_too_many(count: int, application: Caller) -> None:
    assert pointers(send(application, *(event(n) for n in range(count)))) == ["/events"]
    assert Event.objects.count() == 0


@pytest.mark.parametrize("body", [{}, [], {"events": {}}, {"events": None}, {"events": "x"}, 1])
def test_what_is_no_batch(body: Any, application: Caller) -> None:
    is_problem(application.call("POST", BATCH, body), 422, "invalid")


def test_all_that_are_refused_are_named_by_number_and_nothing_is_done(application: Caller) -> None:
    publish("test.one", {"n": 0}, event_id="known")
    large = {"text": "x" * 300_000}
    response = send(
        application,
        event(),
        event(topic="test.*"),
        {"payload": {}},
        event(),
        7,
        event(payload=[]),
        event(payload={"a/b": 2**40, "deep": nested(150)}),
        event(type="\n", id="a b"),
        event(id="known", topic="other"),
        event(payload=large),
        event(extra=1),
    )
    assert pointers(response) == [
        "/events/1/topic",
        "/events/2/topic",
        "/events/4",
        "/events/5/payload",
        "/events/6/payload",
        "/events/7/type",
        "/events/8/id",
        "/events/9/payload",
        "/events/10/extra",
    ]
    assert Event.objects.count() == 1


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def test_numbers_that_readers_read_differently_are_named(application: Caller) -> None:
    body = (
        b'{"events": [{"topic": "a", "payload": {"n": 1}},'
        b' {"topic": "a", "payload": {"list": [1, 9007199254740993]}},'
        b' {"topic": "a", "topic": "b", "payload": {}}]}'
    )
    response = application.call("POST", BATCH, body)
    assert pointers(response) == ["/events/1/payload/list/1", "/events/2"]


def test_ids_that_are_taken_are_a_conflict(application: Caller) -> None:
    publish("test.one", {"n": 0}, event_id="known")
    publish("test.one", {"n": 0}, event_id="strange", tenant="acme")
    response = send(
        application, event(), event(1, id="known"), event(id="known"), event(id="strange")
    )
    assert pointers(response, 409, "event-conflict") == ["/events/1/id", "/events/3/id"]
    assert Event.objects.count() == 2


def test_two_of_the_same_id_in_one_batch(application: Caller) -> None:
    make_subscription()
    response = send(application, event(id="a"), event(1), event(id="a"))
    assert response.status_code == 202
    first, _, third = response.data["data"]
    assert third == {**first, "already_published": True}
    assert Event.objects.count() == Delivery.objects.count() == 2
    response = send(application, event(id="b"), event(1, id="b"))
    assert pointers(response, 409, "event-conflict") == ["/events/1/id"]
    assert Event.objects.filter(pk="b").count() == 0


def test_the_same_batch_again(application: Caller) -> None:
    make_subscription()
    events = [event(n, id=f"e{n}") for n in range(3)]
    first = send(application, *events)
    again = send(application, *events)
    assert (first.status_code, again.status_code) == (202, 200)
    for old, new in zip(first.data["data"], again.data["data"], strict=True):
        assert new == {**old, "already_published": True}
        assert new["subscriptions"] == 1
    more = send(application, *events, event(3, id="e3"))
    assert more.status_code == 202
    assert [one["already_published"] for one in more.data["data"]] == [True, True, True, False]
    assert Event.objects.count() == Delivery.objects.count() == 4


def test_a_key_is_for_the_events_without_an_id(application: Caller) -> None:
    events = [event(), event(), event(id="own")]
    first = send(application, *events, Idempotency_Key="k")
    again = send(application, *events, Idempotency_Key="k")
    assert (first.status_code, again.status_code) == (202, 200)
    ids = [one["id"] for one in first.data["data"]]
    assert len(set(ids)) == 3
    assert ids[2] == "own"
    assert [one["id"] for one in again.data["data"]] == ids
    # Another batch by the same key is not the same.
    response = send(application, event(1), event(), Idempotency_Key="k")
    assert pointers(response, 409, "event-conflict") == ["/events/0"]


def test_tenants_in_one_batch(application: Caller) -> None:
    for tenant in ("acme", "other"):
        make_subscription(tenant=tenant)
    make_subscription(all_tenants=True)
    events = [event(), event(tenant="acme"), event(tenant="other", topic="test.two")]
    response = send(application, *events)
    assert [one["subscriptions"] for one in response.data["data"]] == [1, 1, 1]
    assert Delivery.objects.count() == 5
    acme = Caller("events:write", tenant="acme")
    is_problem(send(acme, event(), event(tenant="other")), 403, "other-tenant")
    assert Event.objects.count() == 3


def test_every_event_for_a_stranger_is_named(application: Caller) -> None:
    acme = Caller("events:write", tenant="acme")
    publish("test.one", {"n": 0}, event_id="known", tenant="acme")
    theirs, known = event(tenant="other"), event(1, id="known")
    response = send(acme, event(), theirs, event(tenant="acme"), theirs)
    names = ["/events/1/tenant", "/events/3/tenant"]
    assert pointers(response, 403, "other-tenant") == names
    response = send(acme, theirs, event(topic="a..b"), {"payload": {}}, known, theirs)
    assert pointers(response) == [
        "/events/0/tenant",
        "/events/1/topic",
        "/events/2/topic",
        "/events/3/id",
        "/events/4/tenant",
    ]
    assert pointers(send(acme, theirs, known)) == ["/events/0/tenant", "/events/1/id"]
    assert Event.objects.count() == 1


def test_batches_with_the_same_ids_at_once(
    application: Caller, at_once: Callable[..., list[Any]]
) -> None:
    make_subscription()
    events = [event(n, id=f"e{n}") for n in range(50)]

    def one(number: int) -> Any:
        turned = events[number:] + events[:number]
        return send(Caller(key_text=application.key), *turned)

    responses = at_once(one, 8)
    assert {response.status_code for response in responses} <= {200, 202}
    for response in responses:
        assert {one["subscriptions"] for one in response.data["data"]} == {1}
    new = [
        one["id"]
        for response in responses
        for one in response.data["data"]
        if not one["already_published"]
    ]
    assert sorted(new) == sorted(one["id"] for one in events)
    assert Event.objects.count() == Delivery.objects.count() == 50
