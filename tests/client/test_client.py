"""Both clients against answers that are made up: what is sent, read, raised and sent again."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import webhooks_client
from webhooks_client import (
    ApiError,
    BadAnswer,
    Client,
    Conflict,
    Fault,
    Forbidden,
    Invalid,
    NewEvent,
    NoAnswer,
    NotFound,
    PreconditionFailed,
    Published,
    Retries,
    ServerError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    WebhooksError,
    new_id,
)
from webhooks_client.operations import MAX_BATCH, MAX_BATCH_BYTES, batches

from tests.client.both import Clients

URL = "https://webhooks.example.com"
SUBSCRIPTION: dict[str, Any] = {
    "id": "0199f3a2-7c1e-7b44-9d0f-3c5a2b1e8f60",
    "tenant": "",
    "all_tenants": False,
    "name": "billing",
    "url": "https://billing.example.com/",
    "topic_patterns": ["order.*"],
    "headers": {"X-Token": "hush"},
    "max_in_flight": 10,
    "recovery": "automatic",
    "enabled": True,
    "state": "active",
    "warnings": [],
    "consecutive_failures": 0,
    "auto_disabled_at": None,
    "last_success_at": "2026-01-31T12:00:00Z",
    "last_failure_at": None,
    "last_error": "",
    "next_probe_at": None,
    "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-31T12:00:00+00:00",
}


def published(event: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": event["id"],
        "topic": event["topic"],
        "type": event.get("type", ""),
        "tenant": event.get("tenant", ""),
        "created_at": "2026-01-31T12:00:00.123Z",
        "subscriptions": 2,
        "already_published": False,
        "of_a_later_version": {"is": "ignored"},
    }


class Server:
    """Takes events, as the API does; the replies in `first` come before."""

    def __init__(self, *first: httpx.Response | Exception) -> None:
        self.first = list(first)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if self.first:
            reply = self.first.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)
        body = json.loads(request.content)
        if request.url.path.endswith("/batch"):
            return httpx.Response(202, json={"data": [published(one) for one in body["events"]]})
        return httpx.Response(202, json=published(body))

    def bodies(self) -> list[Any]:
        return [json.loads(request.content) for request in self.requests]


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without their time."""
    made: list[float] = []

    async def pause(seconds: float) -> None:
        made.append(seconds)

    monkeypatch.setattr(time, "sleep", made.append)
    monkeypatch.setattr(asyncio, "sleep", pause)
    return made


def problem(status: int, kind: str = "invalid", **members: Any) -> httpx.Response:
    body = {"type": f"/api/problems#{kind}", "title": "A title", "status": status, **members}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def test_an_event_is_sent_with_an_id_and_the_key(clients: Clients) -> None:
    server = Server()
    result = clients.make(URL + "/", "whk_key", server).publish("order.created", {"n": 1})
    (request,) = server.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/api/v1/events")
    assert request.headers["Authorization"] == "Bearer whk_key"
    assert request.headers["Content-Type"] == "application/json"
    assert "Content-Length" in request.headers
    (body,) = server.bodies()
    assert body["topic"] == "order.created"
    assert uuid.UUID(body["id"]).version == 7
    assert result == Published(
        body["id"], "order.created", "", "", datetime(2026, 1, 31, 12, 0, 0, 123000, UTC), 2, False
    )


def test_what_is_given_is_sent_and_what_is_not_is_left_to_the_server(clients: Clients) -> None:
    server = Server()
    client = clients.make(URL, handler=server)
    client.publish("a.b", {"ü": [None, True]}, type="t", id="my-id", tenant="")
    assert server.bodies() == [
        {"topic": "a.b", "payload": {"ü": [None, True]}, "type": "t", "id": "my-id", "tenant": ""}
    ]
    client.publish("a", {})
    assert "tenant" not in server.bodies()[1]


@pytest.mark.parametrize(
    "lost",
    [
        httpx.ReadTimeout("slow"),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("gone"),
        httpx.Response(502, text="<html>a proxy</html>"),
        problem(503, "unavailable"),
        problem(429, "throttled"),
    ],
    ids=lambda reply: str(getattr(reply, "status_code", type(reply).__name__)),
)
def test_every_try_to_publish_is_the_same_event(
    clients: Clients, pauses: list[float], lost: Any
) -> None:
    server = Server(lost, lost)
    clients.make(URL, handler=server).publish("order.created", {"n": 1})
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1
    assert len(pauses) == 2


def test_an_event_that_may_be_recorded_can_be_published_again_by_its_id(clients: Clients) -> None:
    server = Server(*[httpx.ReadTimeout("slow")] * 2)
    client = clients.make(URL, handler=server, retries=Retries(count=1))
    with pytest.raises(NoAnswer) as failed:
        client.publish("order.created", {"n": 1})
    assert isinstance(failed.value.__cause__, httpx.ReadTimeout)
    (event_id,) = failed.value.event_ids
    client.publish("order.created", {"n": 1}, id=event_id)
    assert len({request.content for request in server.requests}) == 1


def test_retry_after_is_honoured(clients: Clients, pauses: list[float]) -> None:
    busy = httpx.Response(429, headers={"Retry-After": "3"})
    clients.make(URL, handler=Server(busy)).publish("a", {})
    assert len(pauses) == 1
    assert 3 <= pauses[0] < 4


def test_a_retry_after_that_is_too_long_is_for_the_caller(clients: Clients) -> None:
    server = Server(httpx.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(TooManyRequests) as refused:
        clients.make(URL, handler=server).publish("a", {})
    assert refused.value.retry_after == 3600
    assert len(server.requests) == 1


def test_what_may_have_been_done_is_not_done_twice(clients: Clients) -> None:
    server = Server(*[httpx.ReadTimeout("slow")] * 9)
    client = clients.make(URL, handler=server)
    changes: list[Callable[[], Any]] = [
        lambda: client.subscriptions.create("a", "https://a.example/", ["a"]),
        lambda: client.subscriptions.update("1", enabled=True),
        lambda: client.subscriptions.delete("1"),
        lambda: client.subscriptions.test("1"),
        lambda: client.subscriptions.rotate_secret("1"),
        lambda: client.subscriptions.reset("1"),
        lambda: client.subscriptions.replay("1"),
        lambda: client.deliveries.resend(1),
        lambda: client.deliveries.discard(1),
    ]
    for number, change in enumerate(changes, 1):
        with pytest.raises(NoAnswer):
            change()
        assert len(server.requests) == number


def test_reads_are_retried(clients: Clients) -> None:
    server = Server(httpx.ReadTimeout("slow"), httpx.Response(200, json=SUBSCRIPTION))
    assert clients.make(URL, handler=server).subscriptions.get("1").name == "billing"


def events(count: int, size: int = 0) -> list[NewEvent]:
    return [NewEvent(topic="a", payload={"n": n, "x": "x" * size}) for n in range(count)]


def test_many_events_go_in_batches_that_are_small_enough(clients: Clients) -> None:
    server = Server()
    results = clients.make(URL, handler=server).publish_many(iter(events(2500)))
    sent = [len(body["events"]) for body in server.bodies()]
    assert sent == [MAX_BATCH, MAX_BATCH, 500]
    ids = [event["id"] for body in server.bodies() for event in body["events"]]
    assert len(set(ids)) == 2500
    assert [one.id for one in results] == ids


def test_large_events_go_in_smaller_batches(clients: Clients) -> None:
    server = Server()
    clients.make(URL, handler=server).publish_many(events(50, size=200_000))
    assert sum(len(body["events"]) for body in server.bodies()) == 50
    assert len(server.requests) == 3
    assert all(len(request.content) <= MAX_BATCH_BYTES + 20 for request in server.requests)


def test_no_events_are_no_request(clients: Clients) -> None:
    server = Server()
    assert clients.make(URL, handler=server).publish_many([]) == []
    assert server.requests == []


def test_batches_hold_every_event_once_in_order() -> None:
    sizes = [1, MAX_BATCH_BYTES, 5, MAX_BATCH_BYTES * 2, 1, 1] + [10] * 2001
    encoded = [bytes(size) for size in sizes]
    found = list(batches(encoded))
    assert [event for batch in found for event in batch] == encoded
    assert all(found)
    assert [len(batch) for batch in found] == [1, 1, 1, 1, 1000, 1000, 3]


def test_a_batch_that_fails_leaves_ids_that_make_it_safe_to_call_again(clients: Clients) -> None:
    server = Server()
    client = clients.make(URL, handler=server, retries=Retries(count=0))
    many = events(1500)

    def handler_fails_at_the_second(request: httpx.Request) -> httpx.Response:
        if len(server.requests) == 1:
            server.first.append(httpx.ReadTimeout("slow"))
        return server(request)

    client = clients.make(URL, handler=handler_fails_at_the_second, retries=Retries(count=0))
    with pytest.raises(NoAnswer) as failed:
        client.publish_many(many)
    ids = failed.value.event_ids
    assert len(set(ids)) == 1500
    again = [NewEvent(**event, id=key) for event, key in zip(many, ids, strict=True)]
    client.publish_many(again)
    first, second, *rest = [body["events"] for body in server.bodies()]
    assert rest == [first, second]


def test_a_batch_is_retried_with_the_same_ids(clients: Clients) -> None:
    server = Server(httpx.ReadTimeout("slow"), problem(503))
    clients.make(URL, handler=server).publish_many(events(3))
    assert len(server.requests) == 3
    assert len({request.content for request in server.requests}) == 1


def test_a_key_that_no_event_has_is_a_mistake(clients: Clients) -> None:
    server = Server()
    wrong: Any = [{"topic": "a", "payload": {}, "event_id": "x"}]
    with pytest.raises(TypeError, match="event_id"):
        clients.make(URL, handler=server).publish_many(wrong)
    assert server.requests == []


@pytest.mark.parametrize(
    "payload", [{"x": float("nan")}, {"x": datetime.now(UTC)}, {"x": "\ud800"}]
)
def test_what_json_cannot_hold_is_not_sent(clients: Clients, payload: Any) -> None:
    server = Server()
    with pytest.raises((ValueError, TypeError)):
        clients.make(URL, handler=server).publish("a", payload)
    assert server.requests == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, webhooks_client.BadRequest),
        (401, Unauthorized),
        (403, Forbidden),
        (404, NotFound),
        (405, ApiError),
        (409, Conflict),
        (412, PreconditionFailed),
        (413, webhooks_client.TooLarge),
        (415, ApiError),
        (422, Invalid),
        (429, TooManyRequests),
        (500, ServerError),
        (503, Unavailable),
    ],
)
def test_a_problem_is_an_exception_of_its_status(
    clients: Clients, status: int, kind: type[ApiError]
) -> None:
    told = problem(
        status,
        "some-kind",
        detail="Pattern 2 is wrong.",
        errors=[{"pointer": "/topic_patterns/1", "detail": "no"}, {"parameter": "q", "detail": ""}],
        scope="events:write",
        instance="urn:uuid:1",
    )
    client = clients.make(URL, handler=lambda _: told, retries=Retries(count=0))
    with pytest.raises(WebhooksError) as raised:
        client.events.get("1")
    error = raised.value
    assert type(error) is kind
    assert isinstance(error, ApiError)
    assert (error.status, error.kind, error.title) == (status, "some-kind", "A title")
    assert (error.type, error.instance) == ("/api/problems#some-kind", "urn:uuid:1")
    assert error.errors == (
        Fault("no", pointer="/topic_patterns/1"),
        Fault("", parameter="q"),
    )
    assert error.problem["scope"] == "events:write"
    assert str(error) == f"{status} A title: Pattern 2 is wrong."


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[]", b'{"detail": 5}', b"\xff", b'{"title": 1, "errors": [1]}']
)
def test_an_error_that_is_no_problem_is_an_exception_all_the_same(
    clients: Clients, content: bytes
) -> None:
    told = httpx.Response(502, content=content)
    client = clients.make(URL, handler=lambda _: told, retries=Retries(count=0))
    with pytest.raises(ServerError, match="502"):
        client.events.get("1")


def test_a_redirect_is_not_followed_with_the_key(clients: Clients) -> None:
    seen = []

    def redirect(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.host)
        return httpx.Response(301, headers={"Location": "https://elsewhere.example/"})

    with pytest.raises(ApiError, match="301"):
        clients.make(URL, handler=redirect).events.get("1")
    assert seen == ["webhooks.example.com"]


@pytest.mark.parametrize(
    "answer", [b"", b"<html>", b"[]", b"{}", json.dumps(SUBSCRIPTION | {"name": 5}).encode()]
)
def test_a_success_that_is_not_the_apis_is_said_to_be_none(clients: Clients, answer: bytes) -> None:
    client = clients.make(URL, handler=lambda _: httpx.Response(200, content=answer))
    with pytest.raises(BadAnswer, match="GET /api/v1/subscriptions/1"):
        client.subscriptions.get("1")


def test_answers_are_frozen_and_ignore_what_they_do_not_know(clients: Clients) -> None:
    told = httpx.Response(200, json=SUBSCRIPTION | {"new": [1]}, headers={"ETag": '"abc"'})
    found = clients.make(URL, handler=lambda _: told).subscriptions.get("1")
    assert found.topic_patterns == ("order.*",)
    assert found.last_success_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert found.auto_disabled_at is None
    assert found.etag == '"abc"'
    assert "hush" not in repr(found)
    with pytest.raises(AttributeError):
        found.name = "other"


def test_a_secret_is_in_no_repr(clients: Clients) -> None:
    told = httpx.Response(201, json=SUBSCRIPTION | {"secret": "whsec_hush"})
    client = clients.make(URL, "whk_hush", handler=lambda _: told)
    made = client.subscriptions.create("billing", "https://billing.example.com/", ["order.*"])
    assert made.secret == "whsec_hush"
    assert "hush" not in repr(made)
    assert "hush" not in repr(Client(URL, "whk_hush"))


def test_a_change_sends_what_is_given_and_the_tag(clients: Clients) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=SUBSCRIPTION)

    clients.make(URL, handler=answer).subscriptions.update(
        "1", etag='"abc"', enabled=False, topic_patterns=(), headers={}
    )
    (request,) = seen
    assert request.headers["If-Match"] == '"abc"'
    assert json.loads(request.content) == {"enabled": False, "topic_patterns": [], "headers": {}}


def test_the_tag_of_a_list_is_none_and_is_refused(clients: Clients) -> None:
    client = clients.make(URL, handler=pages)
    (first, *_) = client.subscriptions.list(state="active", limit=2)
    with pytest.raises(ValueError, match="etag"):
        client.subscriptions.delete(first.id, etag=first.etag)


def test_an_id_is_one_part_of_a_path_whatever_it_holds(clients: Clients) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path)
        return problem(404)

    client = clients.make(URL, handler=answer)
    for wrong in ("../subscriptions", "a/b?c#d", "%2e"):
        with pytest.raises(NotFound):
            client.events.get(wrong)
    assert seen == [
        b"/api/v1/events/..%2Fsubscriptions",
        b"/api/v1/events/a%2Fb%3Fc%23d",
        b"/api/v1/events/%252e",
    ]


def pages(request: httpx.Request) -> httpx.Response:
    """Three pages, the second of which is empty; the query but for the cursor is the same."""
    query = dict(request.url.params)
    cursor = query.pop("cursor", "0")
    assert query == {"state": "active", "limit": "2"}
    rows = {"0": ["a", "b"], "1": [], "2": ["c"]}[cursor]
    following = {"0": "1", "1": "2", "2": None}[cursor]
    return httpx.Response(
        200,
        json={"data": [SUBSCRIPTION | {"name": name} for name in rows], "next_cursor": following},
    )


def test_a_list_is_iterated_over_page_by_page(clients: Clients) -> None:
    client = clients.make(URL, handler=pages)
    listing = client.subscriptions.list(state="active", limit=2)
    assert [one.name for one in listing] == ["a", "b", "c"]
    assert [one.name for one in listing] == ["a", "b", "c"], "a second time, from the beginning"


def test_a_page_can_be_had_alone_and_the_next_by_its_cursor(clients: Clients) -> None:
    client = clients.make(URL, handler=pages)
    first = client.subscriptions.list(state="active", limit=2).page()
    assert ([one.name for one in first.data], first.next_cursor) == (["a", "b"], "1")
    later = client.subscriptions.list(state="active", limit=2, cursor="2")
    assert [one.name for one in later] == ["c"]


def test_times_are_sent_with_their_zone(clients: Clients) -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(dict(request.url.params))
        return httpx.Response(200, json={"data": [], "next_cursor": None})

    since = datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert list(clients.make(URL, handler=answer).events.list(since=since)) == []
    assert seen == [{"since": "2026-01-31T12:00:00+00:00"}]


def test_a_replay_goes_on_until_it_is_done(clients: Clients) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        cursor = ["one", "two", None][len(asked) - 1]
        return httpx.Response(200, json={"pending": 10, "held": 1, "next_cursor": cursor})

    client = clients.make(URL, handler=answer)
    done = client.subscriptions.replay(
        "1", status=["failed"], since=datetime(2026, 1, 1, tzinfo=UTC)
    )
    assert (done.pending, done.held) == (30, 3)
    chosen = {"status": ["failed"], "since": "2026-01-01T00:00:00+00:00"}
    assert asked == [chosen, chosen | {"cursor": "one"}, chosen | {"cursor": "two"}]


def test_a_base_url_must_be_one() -> None:
    with pytest.raises(ValueError, match="http"):
        Client("webhooks.example.com", "whk_key")


@pytest.mark.parametrize("key", ["", "whk_…", "whk_a\n", " whk_a", "whk a"])
def test_a_key_that_cannot_be_one_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="key") as refused:
        Client(URL, key)
    assert not key or key not in str(refused.value)


def test_ids_sort_by_the_time_they_were_made() -> None:
    ids = [new_id() for _ in range(100)]
    assert len(set(ids)) == 100
    assert [key[:13] for key in ids] == sorted(key[:13] for key in ids)
    assert {uuid.UUID(key).version for key in ids} == {7}
    assert {uuid.UUID(key).variant for key in ids} == {uuid.RFC_4122}


def test_help_shows_what_a_method_takes_and_returns() -> None:
    signature = inspect.signature(Client(URL, "whk_key").subscriptions.list)
    assert list(signature.parameters)[:2] == ["state", "topic"]
    assert signature.return_annotation == "Listing[Subscription]"
    assert "active" in (Client(URL, "whk_key").subscriptions.list.__doc__ or "")


def test_the_client_needs_httpx_and_nothing_of_the_server() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, webhooks_client; print(*sys.modules)"],
        env={"PYTHONPATH": str(Path(webhooks_client.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in loaded
    assert not loaded & {"django", "ninja", "pydantic", "requests", "api", "deliveries", "tests"}
