"""The client and the OpenAPI document: each operation has a method, each field has its place."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import webhooks_client
from webhooks_client import Client, answers

from api.api import api

Operation = tuple[str, str]

# What the API calls an operation, the client's method, and what an answer (or a row of it) is.
METHODS: dict[Operation, tuple[Callable[[Client], Callable[..., Any]], type[Any] | None]] = {
    ("POST", "/events"): (lambda c: c.publish, answers.Published),
    ("POST", "/events/batch"): (lambda c: c.publish_many, answers.Published),
    ("GET", "/events"): (lambda c: c.events.list, answers.Event),
    ("GET", "/events/{id}"): (lambda c: c.events.get, answers.EventDetails),
    ("GET", "/deliveries"): (lambda c: c.deliveries.list, answers.Delivery),
    ("GET", "/deliveries/{id}"): (lambda c: c.deliveries.get, answers.DeliveryDetails),
    ("POST", "/deliveries/{id}/resend"): (lambda c: c.deliveries.resend, answers.Delivery),
    ("POST", "/deliveries/{id}/discard"): (lambda c: c.deliveries.discard, answers.Delivery),
    ("POST", "/subscriptions"): (lambda c: c.subscriptions.create, answers.NewSubscription),
    ("GET", "/subscriptions"): (lambda c: c.subscriptions.list, answers.Subscription),
    ("GET", "/subscriptions/{id}"): (lambda c: c.subscriptions.get, answers.Subscription),
    ("PATCH", "/subscriptions/{id}"): (lambda c: c.subscriptions.update, answers.Subscription),
    ("DELETE", "/subscriptions/{id}"): (lambda c: c.subscriptions.delete, None),
    ("POST", "/subscriptions/{id}/test"): (lambda c: c.subscriptions.test, answers.TestResult),
    ("POST", "/subscriptions/{id}/rotate-secret"): (
        lambda c: c.subscriptions.rotate_secret,
        answers.RotatedSecret,
    ),
    ("POST", "/subscriptions/{id}/reset"): (lambda c: c.subscriptions.reset, answers.Subscription),
    ("POST", "/subscriptions/{id}/replay"): (
        lambda c: c.subscriptions.replay,
        answers.ReplayedSome,
    ),
    ("GET", "/subscriptions/{id}/stats"): (lambda c: c.subscriptions.stats, answers.Stats),
}
OPERATIONS = sorted(METHODS)
NEEDED = {
    "topic": "order.created",
    "payload": {},
    "events": [{"topic": "order.created", "payload": {}}],
    "name": "billing",
    "url": "https://billing.example.com/",
    "subscription_id": "1",
    "delivery_id": 1,
    "event_id": "1",
}
# What the methods do by themselves: an event has its id, and a replay goes on to its end.
BY_ITSELF = {"Idempotency-Key", "If-Match"}


@functools.cache
def document() -> Any:
    return api.get_openapi_schema()


def operations() -> dict[Operation, Any]:
    """The document's operations, with `{id}` for whatever a parameter of a path is called."""
    return {
        (method.upper(), re.sub(r"\{\w+\}", "{id}", path.removeprefix("/api/v1"))): found
        for path, methods in document()["paths"].items()
        for method, found in methods.items()
        if method in {"get", "post", "put", "patch", "delete"}
    }


def resolved(schema: Any) -> Any:
    """The schema that a reference leads to, also where null would do as well."""
    for one in [*schema.get("anyOf", []), *schema.get("allOf", [])]:
        if one.get("type") != "null":
            return resolved(one)
    if "$ref" in schema:
        return resolved(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    return schema


def properties(content: Any) -> dict[str, Any]:
    found: dict[str, Any] = resolved(content["application/json"]["schema"]).get("properties", {})
    return found


def method_of(operation: Operation, handler: Callable[[httpx.Request], httpx.Response]) -> Any:
    client = Client("http://server.example", "whk_x", transport=httpx.MockTransport(handler))
    return METHODS[operation][0](client)


def not_found(_: httpx.Request) -> httpx.Response:
    return httpx.Response(404, json={"title": "No"})


def test_every_operation_has_a_method_and_every_method_an_operation() -> None:
    assert sorted(operations()) == OPERATIONS
    client = Client("http://server.example", "whk_x")
    there = {
        (type(part).__name__, name)
        for part in (client, client.events, client.deliveries, client.subscriptions)
        for name in dir(part)
        if not name.startswith("_") and inspect.ismethod(getattr(part, name))
    }
    assert len(there - {("Client", "close")}) == len(METHODS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_a_method_asks_for_its_operation(operation: Operation) -> None:
    asked: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return not_found(request)

    method = method_of(operation, note)
    needed = {
        name: NEEDED[name]
        for name, parameter in inspect.signature(method).parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    with pytest.raises(webhooks_client.NotFound):
        result = method(**needed)
        list(result)  # a list asks when it is read
    (request,) = asked
    assert (request.method, request.url.path) == (
        operation[0],
        "/api/v1" + operation[1].replace("{id}", "1"),
    )


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_a_method_takes_what_its_operation_takes(operation: Operation) -> None:
    found = operations()[operation]
    of_url = {one["name"]: one["in"] for one in found.get("parameters", [])}
    takes = {name for name, place in of_url.items() if place == "query"}
    headers = {name for name, place in of_url.items() if place == "header"}
    assert headers <= BY_ITSELF
    takes |= {"etag"} if "If-Match" in headers else set()
    if "requestBody" in found:
        takes |= properties(found["requestBody"]["content"]).keys()
    if operation[1].endswith("/replay"):
        takes.remove("cursor")
    parameters = set(inspect.signature(method_of(operation, not_found)).parameters)
    assert parameters - {"subscription_id", "delivery_id", "event_id"} == takes


@pytest.mark.parametrize("operation", OPERATIONS, ids=" ".join)
def test_what_is_answered_is_what_the_client_reads(operation: Operation) -> None:
    kind = METHODS[operation][1]
    for status, answer in operations()[operation]["responses"].items():
        if not 200 <= int(status) < 300:
            continue
        assert ("content" in answer) == (kind is not None)
        if kind is not None:
            of_answer = properties(answer["content"])
            if "data" in of_answer:
                rows = resolved(of_answer["data"])["items"]
                assert set(of_answer) <= {"data", "next_cursor"}
                of_answer = resolved(rows)["properties"]
            compare(kind, of_answer)


def compare(kind: Any, shown: dict[str, Any]) -> None:
    """The fields of a dataclass, and of those in it, are the properties of the schema."""
    fields = {one.name: one for one in dataclasses.fields(kind) if one.name != "etag"}
    assert fields.keys() == shown.keys(), kind
    for name, one in fields.items():
        if inner := re.search(r"\b(EventDelivery|Attempt|RecentDeliveries)\b", str(one.type)):
            schema = resolved(shown[name])
            schema = resolved(schema["items"]) if "items" in schema else schema
            compare(getattr(answers, inner[1]), schema["properties"])
