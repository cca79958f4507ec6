"""The body of an event: the bytes that are stored, signed and sent, made once.

    {"id":…,"payload":…,"topic":…,"ts":…,"type":…,"v":1}

Keys are sorted by code point at every level, without white space, in UTF-8. A payload that JSON
cannot hold exactly is refused; nothing is coerced in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NoReturn

FORMAT_VERSION = 1
# Deeper bodies are refused by receivers' parsers (Ruby's stops at 100 levels).
MAX_DEPTH = 99

_EVENT_ID = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_STRING = frozenset({str})
_CONTAINERS = (dict, list, tuple)
_LEAVES = (str, int, float, type(None))
_PLAIN_LEAVES = frozenset({str, int, float, bool, type(None)})

_encode = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


class InvalidPayload(ValueError):
    """The payload cannot be sent as it is. The message names the place in it."""


class PayloadTooLarge(InvalidPayload):
    """The body would be longer than the limit."""


class InvalidEventId(ValueError):
    """The text cannot be an event's id."""


def validate_event_id(text: object) -> str:
    """`text`, if it can be an event's id: 1 to 255 characters of `[A-Za-z0-9_.:-]`.

    An id travels in a header and in the signed text of Standard Webhooks. `InvalidEventId`.
    """
    if not isinstance(text, str):
        raise InvalidEventId(f"The event id is of type {type(text).__name__}; give it as a string.")
    if not _EVENT_ID.fullmatch(text):
        raise InvalidEventId(
            f"The event id {_short(text)} has {len(text)} characters; use 1 to 255 of the letters "
            "A-Z and a-z, the digits, and _ . : -"
        )
    return text


def build_body(
    event_id: str,
    ts: datetime,
    topic: str,
    event_type: str,
    payload: object,
    *,
    limit: int | None = None,
) -> bytes:
    """The bytes of one event; the same arguments always give the same bytes.

    `ts` must be aware; it is written in UTC with milliseconds, cut, not rounded (RFC 3339).
    `payload` is a dict of what JSON knows: dict with string keys, list or tuple, str, int, finite
    float, bool, None. Anything else, more than 99 levels and lone surrogates raise
    `InvalidPayload`, which names the place. `limit` is in bytes, for the whole body
    (`PayloadTooLarge`); None is no limit. Id, topic and type must be valid already.
    """
    if not isinstance(payload, dict):
        raise InvalidPayload(
            f"payload is a {type(payload).__name__}; it must be a dict (a JSON object)."
        )
    envelope = {
        "v": FORMAT_VERSION,
        "id": event_id,
        "ts": timestamp(ts),
        "topic": topic,
        "type": event_type,
        "payload": payload,
    }
    try:
        body = _encode(envelope).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        _explain(payload, error)
    # After encoding: by now the payload is known to be finite, so the walk ends.
    if not _keys_and_depth_are_sound(payload):
        _explain(payload, None)
    if limit is not None and len(body) > limit:
        raise PayloadTooLarge(
            f"The body has {len(body):,} bytes; {limit:,} are allowed. Send less (a link to the "
            "data, for example), or raise WEBHOOKS_MAX_PAYLOAD_BYTES."
        )
    return body


def timestamp(ts: datetime) -> str:
    """RFC 3339 in UTC, with milliseconds and `Z`. `ValueError` if `ts` is naive."""
    if ts.tzinfo is None:
        raise ValueError(f"The time {ts!r} has no time zone; pass an aware datetime.")
    return ts.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def parse_body(body: bytes) -> dict[str, Any]:
    """The event in a body that `build_body` made; `InvalidPayload` if it is not one."""
    try:
        event = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"The body is not JSON: {error}.") from None
    if not isinstance(event, dict) or event.get("v") != FORMAT_VERSION:
        raise InvalidPayload(
            f"The body is not an event of format {FORMAT_VERSION}: it must be an object with "
            f'"v":{FORMAT_VERSION}.'
        )
    return event


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _keys_and_depth_are_sound(payload: dict[Any, Any]) -> bool:
    """Check what the encoder lets pass: it turns the keys 1, True and None into strings."""
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for container in level:
            children: Iterable[Any] = container
            if isinstance(container, dict):
                # One pass in C over the types of all keys, instead of a test for each key.
                if not _STRING.issuperset(map(type, container)) and not all(
                    isinstance(key, str) for key in container
                ):
                    return False
                children = container.values()
            below += [
                child
                for child in children
                if type(child) not in _PLAIN_LEAVES and isinstance(child, _CONTAINERS)
            ]
        if not below:
            return True
        level = below
    return False


def _explain(payload: dict[Any, Any], error: Exception | None) -> NoReturn:
    """Raise `InvalidPayload` for the first fault, depth first. Slow; only for refused payloads."""
    stack: list[tuple[str, Any, int]] = [("payload", payload, 1)]
    while stack:
        path, value, depth = stack.pop()
        fault = _fault(path, value, depth)
        if fault:
            raise InvalidPayload(fault) from None
        if isinstance(value, dict):
            children = [(_step(path, key), child) for key, child in value.items()]
        elif isinstance(value, (list, tuple)):
            children = [(f"{path}[{index}]", child) for index, child in enumerate(value)]
        else:
            continue
        stack.extend((place, child, depth + 1) for place, child in reversed(children))
    raise InvalidPayload(f"The event cannot be written as JSON: {error}.") from None


def _fault(path: str, value: Any, depth: int) -> str:
    """What is wrong with this value itself (not with what it holds); empty if nothing is."""
    kind = type(value).__name__
    if isinstance(value, _CONTAINERS):
        if depth > MAX_DEPTH:
            return (
                f"payload is nested more than {MAX_DEPTH} levels deep, or contains itself (at "
                f"{path[:60]}…); make it flatter."
            )
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    return (
                        f"{path} has the key {_short(key)}, of type {type(key).__name__}; keys "
                        "of a JSON object are strings: convert it first."
                    )
                if not _encodable(key):
                    return f"{path} has the key {_short(key)} with {_SURROGATE}"
        return ""
    if not isinstance(value, _LEAVES):
        return (
            f"{path} is a {kind}; JSON has no such type: convert it to a string or a number first."
        )
    if isinstance(value, float) and not math.isfinite(value):
        return f"{path} is {value!r}; JSON has finite numbers only: send null or a string instead."
    if isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError:
            return (
                f"{path} is an integer of {value.bit_length():,} bits, too long to be written in "
                "decimal; send it as a string."
            )
    if isinstance(value, str) and not _encodable(value):
        return f"{path} is {_short(value)} with {_SURROGATE}"
    return ""


_SURROGATE = (
    "a lone surrogate, which UTF-8 cannot hold; it comes from text that was decoded wrongly."
)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _step(path: str, key: object) -> str:
    if isinstance(key, str) and key.isidentifier() and len(key) <= 60:
        return f"{path}.{key}"
    return f"{path}[{_short(key)}]"


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > 60:
        return repr(value[:60]) + "…"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "…"
