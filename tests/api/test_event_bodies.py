"""Bodies with sharp edges, through the whole of `POST /events`: refused, and never an error 500."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from deliveries.body import MAX_DEPTH
from deliveries.models import Event
from tests.api.calls import Caller, is_problem

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nobody_is_woken")]

EVENTS = "/api/v1/events"
START = b'{"topic": "test.one", "id": "e", "payload": '


@pytest.fixture
def application() -> Caller:
    return Caller("events:write")


@pytest.mark.parametrize(
    "body",
    [
        START + b"{}} trailing",
        START + b"{}}{}",
        START + b"NaN}",
        START + b'{"a": "\xff"}}',
        b"\xef\xbb\xbf" + START + b"{}}",
        (START + b"{}}").decode().encode("utf-16"),
    ],
)
def test_what_is_no_json(body: bytes, application: Caller) -> None:
    is_problem(application.call("POST", EVENTS, body), 400, "not-json")
    assert Event.objects.count() == 0


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        (b'{"a": [{"b": {"c": 1, "c": 2}}]}', "/payload/a/0/b"),
        (b'{"n": 9007199254740992}', "/payload/n"),
        (b'{"a": [0, 1' + b"0" * 5000 + b"]}", "/payload/a/1"),
        (b'{"a": -1e400}', "/payload/a"),
        (b'{"a~/": "\\ud800"}', "/payload/a~0~1"),
        (b'{"\\udfff": 1}', "/payload"),
    ],
)
def test_what_readers_read_differently(payload: bytes, pointer: str, application: Caller) -> None:
    response = application.call("POST", EVENTS, START + payload + b"}")
    problem = is_problem(response, 422, "invalid")
    assert [one["pointer"] for one in problem["errors"]] == [pointer]
    assert Event.objects.count() == 0


@pytest.mark.parametrize(
    "payload",
    [
        '{"n": 9007199254740991, "m": -9007199254740991, "f": 1.7976931348623157e308, "s": 1e-400}',
        '{"a": "\\ud83d\\ude00", "b": "\\u0000", "": ""}',
        "{}",
    ],
)
def test_what_every_reader_reads_alike(payload: str, application: Caller) -> None:
    assert application.call("POST", EVENTS, START + payload.encode() + b"}").status_code == 202
    assert Event.objects.get().payload == json.loads(payload)


@pytest.mark.parametrize("levels", [MAX_DEPTH, 300, 900, 1000, 5000, 100_000])
@pytest.mark.parametrize(("opened", "closed"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting(levels: int, opened: bytes, closed: bytes, application: Caller) -> None:
    body = START + b'{"a":' + opened * levels + b"1" + closed * levels + b"}}"
    is_problem(application.call("POST", EVENTS, body), 422, "invalid")


def test_an_event_exactly_at_the_limit(application: Caller, configure: Callable[..., None]) -> None:
    def send(text: str) -> Any:
        return application.call("POST", EVENTS, {"topic": "a", "id": "e", "payload": {"a": text}})

    assert send("").status_code == 202
    (event,) = Event.objects.all()
    configure(max_payload_bytes=len(event.body) + 10)
    event.delete()
    assert send("x" * 10).status_code == 202
    Event.objects.all().delete()
    problem = is_problem(send("x" * 11), 413, "payload-too-large")
    assert problem["errors"][0]["pointer"] == "/payload"
    assert Event.objects.count() == 0


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"'])
def test_a_body_that_is_no_object(body: bytes, application: Caller) -> None:
    is_problem(application.call("POST", EVENTS, body), 422, "invalid")


@pytest.mark.parametrize("path", [EVENTS, f"{EVENTS}/batch"])
def test_bodies_of_another_kind(path: str, application: Caller) -> None:
    is_problem(application.call("POST", path), 422, "invalid")
    for headers, status in (
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Encoding": "gzip"}, 415),
        ({"Transfer_Encoding": "chunked"}, 411),
    ):
        assert application.call("POST", path, b"{}", **headers).status_code == status


def test_a_request_exactly_at_the_limit(
    application: Caller, configure: Callable[..., None]
) -> None:
    body = START + b"{}}"
    configure(api_max_body_bytes=len(body))
    assert application.call("POST", EVENTS, body).status_code == 202
    is_problem(application.call("POST", EVENTS, body + b" "), 413, "too-large")
