"""What a key may do, on every path of the OpenAPI document: its scopes, its tenant, no more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db.models import Model
from django.utils import timezone

from api.keys import create_key, revoke
from api.models import SCOPES, ApiKey
from deliveries import publish
from deliveries.models import Attempt, Delivery, Event, Lane
from subscriptions.models import SigningSecret, Subscription
from tests.api.calls import Caller
from tests.api.operations import METHODS, Operation, document, operations
from tests.api.subscriptions import problem
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

ALL = pytest.mark.parametrize("operation", operations(), ids=str)
# Who owns what there is, and who asks.
STRANGERS = pytest.mark.parametrize(
    ("owner", "stranger"), [("acme", "other"), ("acme", ""), ("", "acme"), ("a", "A")]
)
# In every text of the owner's rows; no answer to a stranger may hold it.
CANARY = "canary"
TOPIC = f"{CANARY}.created"


@pytest.fixture(autouse=True)
def no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Test events go nowhere."""

    class Away:
        def submit(self, *_: Any) -> None:
            raise OSError("there is no network in this test")

    monkeypatch.setattr("deliveries.sending.send_test.transport", Away)


@dataclass
class Owned:
    """The owner's rows, one of each kind, by the names that paths have for their ids."""

    ids: dict[str, object]

    def traces(self, answer: bytes) -> list[str]:
        """What an answer says of them."""
        text = answer.decode().lower()
        return [text for shape in (CANARY, str(self.ids["subscription_id"])) if shape in text]


def owned(tenant: str) -> Owned:
    fields: dict[str, Any] = {
        "url": f"https://{CANARY}.example.com/",
        "headers": {f"X-{CANARY}": CANARY},
        "topic_patterns": [">", TOPIC],
    }
    # So that there are deliveries of the owner's event that are not of the owner's subscription.
    make_subscription(name=f"{CANARY} of all", all_tenants=True, **fields)
    subscription = make_subscription(name=CANARY, tenant=tenant, **fields)
    event = publish(
        TOPIC, {CANARY: CANARY}, event_type=CANARY, event_id=f"{CANARY}-1", tenant=tenant
    )
    # Finished, so that it can be sent again, and open, so that it can be discarded.
    Delivery.objects.filter(event=event).update(
        status="failed", next_attempt_at=None, last_error=CANARY, finished_at=timezone.now()
    )
    publish(TOPIC, {CANARY: 2}, event_id=f"{CANARY}-2", tenant=tenant)
    Lane.objects.create(subscription=subscription, failures=1, backoff_reason=CANARY)
    for delivery in Delivery.objects.all():
        Attempt.objects.create(
            delivery=delivery, number=1, outcome="http", status_code=500, error=CANARY,
            response_body=CANARY, remote_address=CANARY, started_at=timezone.now(),
        )  # fmt: skip
    delivery = Delivery.objects.get(event=event, subscription=subscription)
    return Owned(
        {"subscription_id": subscription.pk, "event_id": event.pk, "delivery_id": delivery.pk}
    )


Rows = dict[tuple[str, Any], dict[str, Any]]


def everything() -> Rows:
    """All rows, as they are, by table and key."""
    models: tuple[type[Model], ...] = (
        Subscription, SigningSecret, Event, Delivery, Attempt, Lane,
    )  # fmt: skip
    return {
        (model.__name__, row[model._meta.pk.attname]): row
        for model in models
        for row in model._default_manager.values()
    }


def is_untouched(before: Rows, owner: str, there: Owned) -> bool:
    """Whether what was there is as it was, and nothing of the owner's has been added."""
    after = everything()
    added = [row for key, row in after.items() if key not in before]
    # What is for all tenants gets every event.
    return before.items() <= after.items() and not any(
        row["subscription_id"] == there.ids["subscription_id"]
        if "subscription_id" in row
        else row.get("tenant") == owner
        for row in added
    )


def call(client: Caller, operation: Operation, ids: dict[str, object], **query: object) -> Any:
    path = operation.at(ids)
    if query:
        path += "?" + "&".join(f"{name}={value}" for name, value in query.items())
    return client.call(operation.method, path, operation.body)


NOBODYS: dict[str, object] = {
    "subscription_id": UUID(int=7), "event_id": "nothing", "delivery_id": 2**62,
}  # fmt: skip


def test_the_document_has_every_path_that_is_served() -> None:
    assert len(operations()) >= 18
    assert {operation.path.split("/")[3] for operation in operations()} == {
        "subscriptions", "events", "deliveries",
    }  # fmt: skip


@ALL
def test_every_operation_asks_for_one_scope(operation: Operation) -> None:
    (scope,) = operation.scopes
    assert scope in SCOPES
    assert ("read" in scope) == (operation.method == "GET")
    assert set(operation.ids) <= NOBODYS.keys()
    assert {401, 403, 429, 500, 503} <= operation.statuses


# Scopes.


@ALL
@pytest.mark.parametrize("key", ["none", "wrong", "expired", "revoked"])
def test_without_a_valid_key_nothing_is_done(operation: Operation, key: str) -> None:
    there = owned("acme")
    before = everything()
    text = {
        "none": lambda: "",
        "wrong": lambda: create_key("k", SCOPES, all_tenants=True)[1][:-1] + "_",
        "expired": lambda: create_key(
            "k", SCOPES, all_tenants=True, expires_at=timezone.now() - timedelta(seconds=1)
        )[1],
        "revoked": lambda: _revoked(),
    }[key]()
    response = call(Caller(key_text=text), operation, there.ids)
    problem(response, 401, "unauthorized")
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert not there.traces(response.content)
    assert everything() == before


def _revoked() -> str:
    text = create_key("k", SCOPES, all_tenants=True)[1]
    revoke(ApiKey.objects.all())
    return text


@ALL
def test_a_key_without_the_scope_is_told_which_and_does_nothing(operation: Operation) -> None:
    there = owned("acme")
    before = everything()
    (scope,) = operation.scopes
    others = [one for one in SCOPES if one != scope]
    for scopes in ([one] for one in others), [others]:
        for held in scopes:
            client = Caller(*([held] if isinstance(held, str) else held))
            response = call(client, operation, there.ids)
            found = problem(response, 403, "missing-scope")
            assert found["scope"] == scope
            assert scope in found["detail"]
            assert not there.traces(response.content)
    assert everything() == before


@ALL
def test_the_one_scope_is_enough(operation: Operation) -> None:
    there = owned("acme")
    response = call(Caller(*operation.scopes), operation, there.ids)
    assert 200 <= response.status_code < 300 or response.status_code == 409, response.content


@pytest.mark.parametrize("path", document()["paths"])
def test_a_method_that_is_not_in_the_document_does_nothing(path: str) -> None:
    there = owned("acme")
    before = everything()
    known = {operation.method for operation in operations() if operation.path == path}
    some = next(operation for operation in operations() if operation.path == path)
    for client in (Caller(key_text=""), Caller(*SCOPES, tenant="other"), Caller(*SCOPES)):
        for method in set(METHODS) - known - ({"HEAD"} if "GET" in known else set()):
            response = client.call(method, some.at(there.ids))
            assert response.status_code == 405, method
            assert not there.traces(response.content)
    assert everything() == before


# Tenants.


@ALL
@STRANGERS
def test_a_stranger_finds_nothing_and_changes_nothing(
    operation: Operation, owner: str, stranger: str
) -> None:
    there = owned(owner)
    before = everything()
    client = Caller(*SCOPES, tenant=stranger)
    response = call(client, operation, there.ids)
    if operation.ids:
        problem(response, 404, "not-found")
        # As if it were not there at all: no answer tells the two apart.
        missing = call(client, operation, NOBODYS)
        assert _kind(missing) == _kind(response)
    else:
        assert response.status_code in (200, 201, 202), response.content
    text = response.content
    if operation.ids:
        # The id of the path, which the stranger has sent.
        text = text.replace(str(there.ids[operation.ids[0]]).encode(), b"")
    assert not there.traces(text)
    assert is_untouched(before, owner, there)


def _kind(response: Any) -> tuple[int, set[str], str, str]:
    return response.status_code, response.data.keys(), response.data["type"], response.data["title"]


LISTS = [one for one in operations() if one.method == "GET" and not one.ids]


@pytest.mark.parametrize("operation", LISTS, ids=str)
@STRANGERS
def test_no_filter_of_a_list_reaches_a_strangers_rows(
    operation: Operation, owner: str, stranger: str
) -> None:
    there = owned(owner)
    values = {
        "tenant": owner,
        "subscription": there.ids["subscription_id"],
        "event": there.ids["event_id"],
        "topic": TOPIC,
        "host": f"{CANARY}.example.com",
        "since": "2000-01-01T00:00:00Z",
        "until": "2100-01-01T00:00:00Z",
        "limit": "200",
    }
    several = {
        "status": ["pending", "held", "succeeded", "failed", "discarded"],
        "state": ["active", "paused", "tripped"],
    }
    names = {name for name, place in operation.parameters.items() if place == "query"}
    assert names <= values.keys() | several.keys() | {"cursor"}
    choices = [{name: value} for name, value in values.items() if name in names]
    choices += [{name: one} for name in names & several.keys() for one in several[name]]
    choices += [{**one, "tenant": owner} for one in list(choices)]
    mine, owners = Caller(*SCOPES, tenant=stranger), Caller(*SCOPES)
    for choice in choices:
        response = call(mine, operation, {}, **choice)
        assert (response.status_code, response.data) == (
            200, {"data": [], "next_cursor": None},
        ), choice  # fmt: skip
    # A cursor says where to go on, not what is seen.
    cursor = call(owners, operation, {}, limit=1).data["next_cursor"]
    assert cursor is not None
    assert call(mine, operation, {}, cursor=cursor).data["data"] == []
    assert there.traces(call(owners, operation, {}).content), "there is something to be found"


WRITES = [one for one in operations() if one.method == "POST" and not one.ids]


@pytest.mark.parametrize("operation", WRITES, ids=str)
@STRANGERS
def test_nothing_is_made_for_another_tenant(
    operation: Operation, owner: str, stranger: str
) -> None:
    there = owned(owner)
    before = everything()
    client = Caller(*SCOPES, tenant=stranger)
    bodies = [body for body in _with(operation.body, "tenant", owner) if body != operation.body]
    assert bodies, "a body that says whose it is"
    for body in bodies:
        response = client.call("POST", operation.path, body)
        problem(response, 403, "other-tenant")
        assert not there.traces(response.content)
    assert everything() == before


def _with(body: Any, name: str, value: str) -> list[Any]:
    """Copies of the body in which one of its objects has this member."""
    if not isinstance(body, dict):
        return []
    found: list[Any] = [body | {name: value}] if "url" in body or "topic" in body else []
    for key, inner in body.items():
        if isinstance(inner, list):
            found += [body | {key: [one]} for each in inner for one in _with(each, name, value)]
    return found


@pytest.mark.parametrize(
    "operation", [one for one in WRITES if "events:write" in one.scopes], ids=str
)
@STRANGERS
def test_an_id_of_a_strangers_event_tells_nothing_of_it(
    operation: Operation, owner: str, stranger: str
) -> None:
    there = owned(owner)
    before = everything()
    for payload in ({CANARY: CANARY}, {"other": 1}):
        event = {"topic": TOPIC, "type": CANARY, "payload": payload, "id": there.ids["event_id"]}
        body = {"events": [event]} if "events" in operation.body else event
        response = Caller(*SCOPES, tenant=stranger).call("POST", operation.path, body)
        problem(response, 409, "event-conflict")
        sent = json.dumps(body).encode()
        assert b"created_at" not in response.content
        assert response.content.lower().count(CANARY.encode()) <= sent.count(CANARY.encode())
    assert everything() == before


@pytest.mark.parametrize(
    "operation", [one for one in operations() if "Idempotency-Key" in one.parameters], ids=str
)
@STRANGERS
def test_an_idempotency_key_means_something_for_its_tenant_alone(
    operation: Operation, owner: str, stranger: str
) -> None:
    body = _without(operation.body, "id")
    answers = [
        Caller(*SCOPES, tenant=tenant).call(
            "POST", operation.path, body, Idempotency_Key="the same"
        )
        for tenant in (owner, stranger, owner)
    ]
    assert [answer.status_code for answer in answers] == [202, 202, 200]
    assert sorted(Event.objects.values_list("tenant", flat=True)) == sorted([owner, stranger])


def _without(body: Any, name: str) -> Any:
    if isinstance(body, list):
        return [_without(each, name) for each in body]
    if isinstance(body, dict) and "payload" not in body:
        return {key: _without(value, name) for key, value in body.items()}
    return {key: value for key, value in body.items() if key != name}


@STRANGERS
def test_an_event_of_a_stranger_reaches_no_subscription_of_the_owner(
    owner: str, stranger: str
) -> None:
    there = owned(owner)
    count = Delivery.objects.filter(subscription=there.ids["subscription_id"]).count()
    client = Caller(*SCOPES, tenant=stranger)
    response = client.call("POST", "/api/v1/events", {"topic": TOPIC, "payload": {}})
    assert response.status_code == 202
    assert Delivery.objects.filter(subscription=there.ids["subscription_id"]).count() == count


@ALL
def test_the_owner_reaches_what_a_stranger_does_not(operation: Operation) -> None:
    """Or the tests above would pass for an API that answers nothing."""
    there = owned("acme")
    response = call(Caller(*SCOPES, tenant="acme"), operation, there.ids)
    assert response.status_code < 300 or response.status_code == 409, response.content
    assert response.status_code == 204 or response.data
