"""Bodies: what is refused before it is read, and what is no JSON for all readers."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIRequest
from hypothesis import given
from hypothesis import strategies as st

from api import bodies
from api.json import MAX_INTEGER, parse
from api.problems import Problem
from tests.api.calls import Caller, is_problem

THINGS = "/api/v1/things"
SOUND = b'{"name": "a", "payload": {}}'


@pytest.fixture
def caller(db: Any) -> Caller:
    return Caller("events:write")


@pytest.mark.urls("tests.api.routes")
def test_a_body_that_is_too_large_is_not_read(caller: Caller, configure: Any) -> None:
    configure(api_max_body_bytes=100)
    # The length is said, and nothing comes: whoever read it would wait, or find it cut.
    response = caller.call("POST", THINGS, SOUND, Content_Length="101")
    assert "100" in is_problem(response, 413, "too-large")["detail"]
    assert caller.call("POST", THINGS, SOUND).status_code == 200


@pytest.mark.urls("tests.api.routes")
def test_a_body_of_more_than_forms_may_have_is_read(caller: Caller) -> None:
    large = b'{"name": "' + b"a" * 5_000_000 + b'", "payload": {}}'
    assert caller.call("POST", THINGS, large).status_code == 200


@pytest.mark.urls("tests.api.routes")
@pytest.mark.parametrize(
    ("headers", "status", "type"),
    [
        ({"Content_Type": "text/plain"}, 415, "unsupported-media-type"),
        ({"Content_Type": ""}, 415, "unsupported-media-type"),
        ({"Content_Type": "multipart/form-data"}, 415, "unsupported-media-type"),
        ({"Content_Type": "application/json; charset=latin-1"}, 415, "unsupported-media-type"),
        ({"Content_Encoding": "gzip"}, 415, "unsupported-media-type"),
        ({"Transfer_Encoding": "chunked"}, 411, "length-required"),
    ],
)
def test_a_body_of_another_kind_is_refused(
    caller: Caller, headers: dict[str, str], status: int, type: str
) -> None:
    is_problem(caller.call("POST", THINGS, SOUND, **headers), status, type)


@pytest.mark.urls("tests.api.routes")
@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
        "application/json; charset=utf-8; profile=x",
        'application/json; profile="charset=latin1"',
    ],
)
def test_json_in_utf_8_is_what_is_wanted(caller: Caller, kind: str) -> None:
    response = caller.call("POST", THINGS, SOUND, Content_Type=kind, Content_Encoding="Identity")
    assert response.status_code == 200


@pytest.mark.urls("tests.api.routes")
def test_a_body_that_means_nothing_is_not_judged(db: Any) -> None:
    reader = Caller("deliveries:read")
    assert reader.call("GET", THINGS, b"{", Content_Type="text/plain").status_code == 200


@pytest.mark.urls("tests.api.routes")
def test_a_missing_body_is_said_to_be_missing(caller: Caller) -> None:
    problem = is_problem(caller.call("POST", THINGS), 422, "invalid")
    assert problem["errors"] == [{"pointer": "", "detail": "A body is needed: a JSON document."}]


@pytest.mark.urls("tests.api.routes")
def test_who_has_no_key_is_told_so_before_anything_of_the_body(db: Any) -> None:
    stranger = Caller(key_text="")
    response = stranger.call("POST", THINGS, b"{", Content_Type="text/plain")
    is_problem(response, 401, "unauthorized")


class _Gone(io.BytesIO):
    def read(self, *size: Any) -> bytes:
        raise ConnectionResetError


@pytest.mark.parametrize("stream", [io.BytesIO(SOUND), _Gone()])
def test_a_client_that_goes_away_in_its_body_is_no_error_of_the_server(stream: io.BytesIO) -> None:
    environ = {
        "REQUEST_METHOD": "POST",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": "100",
        "wsgi.input": stream,
    }
    with pytest.raises(Problem) as caught:
        bodies.read(WSGIRequest(environ))
    assert (caught.value.status, caught.value.type) == (400, "incomplete-body")


NO_JSON = {
    "nothing": b"",
    "a brace": b"{",
    "two documents": b"{} {}",
    "a comment": b"{} // a",
    "single quotes": b"{'a': 1}",
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "latin-1": '{"a": "ä"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a control character": b'{"a": "\x01"}',
    "an encoded surrogate": b'{"a": "\xed\xa0\x80"}',
    "a leading zero": b'{"a": 01}',
    "an end after a number that is too large": b"[1e999,",
    "an end after an integer that is too large": b"[99999999999999999999",
    "a brace too many after a key that is there twice": b'{"a": 1, "a": 2}}',
    "more after a key that is there twice": b'{"topic": "a", "topic": "b"} x',
    "NaN after a number that is too large": b'{"a": 1e999, "b": NaN}',
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON.keys())
def test_what_is_no_json_is_400(body: bytes) -> None:
    with pytest.raises(Problem) as caught:
        parse(body)
    assert (caught.value.status, caught.value.type) == (400, "not-json")


ODD = {
    '{"a": 1, "a": 1}': "",
    '{"a": [{"b": {"c": 1, "d": 2, "c": 3}}]}': "/a/0/b",
    '{"a": [1, 9007199254740992]}': "/a/1",
    '{"a": -9007199254740992}': "/a",
    '{"a": ' + "1" * 5000 + "}": "/a",
    '{"a": 1e999}': "/a",
    '{"a": [[-1e400]]}': "/a/0/0",
    '{"a/b": {"~": 1e999}}': "/a~1b/~0",
    '{"a": "\\ud800"}': "/a",
    '{"a": "\\udc00\\ud800"}': "/a",
    '{"\\ud800": 1}': "",
    "9007199254740993": "",
}


@pytest.mark.parametrize(("text", "pointer"), ODD.items(), ids=[text[:30] for text in ODD])
def test_what_readers_of_json_disagree_on_is_named_with_its_place(text: str, pointer: str) -> None:
    with pytest.raises(Problem) as caught:
        parse(text.encode())
    assert caught.value.status == 422
    assert caught.value.members["errors"][0]["pointer"] == pointer
    caught.value.response()


def test_a_body_that_is_nested_too_deeply_is_refused() -> None:
    deep = b"[" * 100_000
    for body in (deep, b'{"a":' * 100_000, b"[" * 50_000 + b"]" * 50_000, b"[1e999," + deep):
        with pytest.raises(Problem) as caught:
            parse(body)
        assert caught.value.status in (400, 422)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-MAX_INTEGER, MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("aä\0😀/~"), inner),
    max_leaves=20,
)


@given(_json, st.booleans())
def test_everything_else_is_read_as_python_reads_it(value: Any, ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii).encode()
    assert parse(body) == json.loads(body)


_pieces = st.lists(
    st.sampled_from(
        [*'{}[]:,"0 -.', "{}", "[1e999,", '"a":', '"\\ud800"', "9" * 20, "1e999", "NaN", "[" * 3000]
    )
).map(lambda pieces: "".join(pieces).encode())


@given(
    st.binary()
    | _pieces
    | st.builds(lambda value, rest: json.dumps(value).encode() + rest, _json, _pieces)
)
def test_whatever_is_sent_is_a_value_or_a_problem(body: bytes) -> None:
    refused = None
    try:
        parse(body)
    except Problem as problem:
        refused = problem.response().status_code
    assert refused in (None, 400, 422)
