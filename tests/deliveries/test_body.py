from __future__ import annotations

import enum
import json
import math
import uuid
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deliveries.body import (
    InvalidEventId,
    InvalidPayload,
    PayloadTooLarge,
    build_body,
    parse_body,
    timestamp,
    validate_event_id,
)

TS = datetime(2026, 3, 1, 12, 30, 5, 123999, tzinfo=UTC)


def build(payload: object, **fields: Any) -> bytes:
    arguments: dict[str, Any] = {"event_id": "evt_1", "ts": TS, "topic": "order.created"}
    arguments |= {"event_type": "order", "payload": payload, **fields}
    return build_body(**arguments)


def test_the_body_is_this_text_exactly() -> None:
    assert (
        build({"b": [1, 2.5, None, True], "a": {"z": "ü", "y": "\x00"}})
        == (
            '{"id":"evt_1","payload":{"a":{"y":"\\u0000","z":"ü"},"b":[1,2.5,null,true]},'
            '"topic":"order.created","ts":"2026-03-01T12:30:05.123Z","type":"order","v":1}'
        ).encode()
    )


def test_the_order_of_insertion_does_not_change_the_body() -> None:
    assert build({"a": 1, "b": {"c": 2, "d": 3}}) == build({"b": {"d": 3, "c": 2}, "a": 1})


def test_a_body_is_read_back() -> None:
    payload = {"a": [1, {"b": "日本"}], "big": 2**5000}
    event = parse_body(build(payload))
    assert event["payload"] == payload
    assert event["v"] == 1
    assert event["ts"] == "2026-03-01T12:30:05.123Z"


def test_the_time_is_written_in_utc_with_milliseconds() -> None:
    east = TS.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert timestamp(east) == "2026-03-01T12:30:05.123Z"
    assert timestamp(TS.replace(microsecond=0)) == "2026-03-01T12:30:05.000Z"


def test_a_naive_time_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        build({}, ts=TS.replace(tzinfo=None))


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Key(str):
    pass


def nested(depth: int) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(depth - 1):
        payload = {"a": payload}
    return payload


def circular() -> dict[str, Any]:
    payload: dict[str, Any] = {"a": 1}
    payload["wide"] = [payload, payload]
    return payload


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ([1], "payload is a list; it must be a dict"),
        (None, "payload is a NoneType"),
        ("{}", "payload is a str"),
        ({"order": {"total": Decimal("1.5")}}, "payload.order.total is a Decimal"),
        ({"at": TS}, "payload.at is a datetime"),
        ({"rows": [1, {"id": uuid.UUID(int=1)}]}, r"payload.rows\[1\].id is a UUID"),
        ({"a": {1, 2}}, "payload.a is a set"),
        ({"a": b"x"}, "payload.a is a bytes"),
        ({"a": Colour.RED}, "payload.a is a Colour"),
        ({"a": object}, "payload.a is a type"),
        ({"a": math.nan}, "payload.a is nan"),
        ({"a": [math.inf]}, r"payload.a\[0\] is inf"),
        ({"a": -math.inf}, "payload.a is -inf"),
        ({1: 2}, "payload has the key 1, of type int"),
        ({"a": [{True: 1}]}, r"payload.a\[0\] has the key True, of type bool"),
        ({"a": {None: 1}}, "payload.a has the key None, of type NoneType"),
        ({"a": {1.5: 1}}, "payload.a has the key 1.5, of type float"),
        ({"a": {"x": 1, 2: 1}}, "payload.a has the key 2, of type int"),
        ({"a": {(1, 2): 1}}, r"payload.a has the key \(1, 2\), of type tuple"),
        ({"a b": {math.nan: 1}}, r"payload\['a b'\] has the key nan"),
        ({"a": "x\ud800"}, r"payload.a is 'x\\ud800' with a lone surrogate"),
        ({"a": {"\udfff": 1}}, r"payload.a has the key '\\udfff' with a lone surrogate"),
        ({"a": 10**5000}, "payload.a is an integer of 16,610 bits"),
        (nested(100), "nested more than 99 levels"),
        (nested(100_000), "nested more than 99 levels"),
        (circular(), "or contains itself"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "payload",
)
def test_what_json_cannot_hold_is_refused_with_its_place(payload: object, sentence: str) -> None:
    with pytest.raises(InvalidPayload, match=sentence) as caught:
        build(payload)
    assert not isinstance(caught.value, PayloadTooLarge)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400


def test_the_deepest_payload_that_receivers_parse_is_accepted() -> None:
    assert parse_body(build(nested(99)))["payload"] == nested(99)


@pytest.mark.parametrize(
    "payload",
    [
        {},
        OrderedDict(b=1, a=2),
        defaultdict(list, a=[1]),
        {Key("a"): Key("b")},
        {"a": (1, (2, 3))},
        {"": 0},
        {"a": Number.ONE},
    ],
)
def test_kinds_of_dict_str_and_int_are_what_they_stand_for(payload: dict[str, Any]) -> None:
    assert parse_body(build(payload))["payload"] == json.loads(json.dumps(payload))


def test_a_body_over_the_limit_says_how_long_it_is() -> None:
    payload = {"text": "ü" * 1000}
    size = len(build(payload))
    assert size > 2000
    assert len(build(payload, limit=size)) == size
    with pytest.raises(PayloadTooLarge, match=f"{size:,} bytes; {size - 1:,} are allowed.*MAX_P"):
        build(payload, limit=size - 1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"v":2}',
        b'{"v":1,"payload":NaN}',
        b'{"v":1',
        b'{"v":' + b"[" * 200_000,
        b'{"v":' + b"1" * 5000 + b"}",
    ],
    ids=range(9),
)
def test_what_is_no_body_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidPayload):
        parse_body(body)


@pytest.mark.parametrize("text", ["a", "evt_1", "01JQ:x.y-z", "A" * 255])
def test_a_good_event_id_is_returned(text: str) -> None:
    assert validate_event_id(text) == text


@pytest.mark.parametrize(
    "text", ["", "A" * 256, "a b", "a\n", "a/b", "é", "٣", "a,b", "a\x00", None, 7, b"a"]
)
def test_a_bad_event_id_is_refused(text: object) -> None:
    with pytest.raises(InvalidEventId) as caught:
        validate_event_id(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_every_json_object_goes_through_unchanged(payload: dict[str, Any]) -> None:
    body = build(payload)
    assert parse_body(body)["payload"] == payload
    assert b"\n" not in body
    assert build(parse_body(body)["payload"]) == body


odd_keys = st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.floats())


@given(st.dictionaries(odd_keys, json_values, min_size=1, max_size=4), st.booleans())
def test_a_key_is_never_coerced(inner: dict[Any, Any], wrapped: bool) -> None:
    payload = {"list": [inner]} if wrapped else inner
    if all(isinstance(key, str) for key in inner):
        build(payload)
    else:
        with pytest.raises(InvalidPayload, match="has the key"):
            build(payload)
