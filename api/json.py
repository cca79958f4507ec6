"""JSON as all parsers read it alike; anything else is refused, with its place.

400 for what is no JSON: syntax, another encoding than UTF-8, NaN and infinities. 422 for what
parsers read differently: keys that are there twice, integers beyond ±(2^53-1), floats that
overflow, lone surrogates; and for more levels than the parser can hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from typing import Any, NoReturn

from api.problems import Problem, invalid

MAX_INTEGER = 2**53 - 1


class _Odd(Exception):
    """Something that a second, slower look will find the place of."""


class _Fault:
    """In the second look: stands where something is that is refused."""

    def __init__(self, detail: str) -> None:
        self.detail = detail


def parse(body: bytes) -> Any:
    """What `body` holds. Raises `Problem`."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_json(f"The body is not UTF-8: byte {error.start} begins no character.") from None
    try:
        return _value(text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise _not_json(f"The body is not JSON: {error}.") from None


def _value(text: str) -> Any:
    """Raises `Problem`, or `ValueError` or `RecursionError` where Python's parser gave up."""
    try:
        value = _decoder.decode(text)
        # The escapes of lone surrogates are the one way to text that UTF-8 cannot hold.
        if "\\u" not in text or _encodable(value):
            return value
    except _Odd:
        pass
    raise _explain(text)


def _not_json(detail: str) -> Problem:
    return Problem(400, "not-json", "The body is not JSON", detail)


def _too_deep() -> Problem:
    return invalid([{"pointer": "", "detail": "The body is nested too deeply; make it flatter."}])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Odd
    return found


def _integer(text: str) -> int:
    # 15 digits and a sign are always small enough.
    if len(text) > 15 and (len(text) > 17 or abs(int(text)) > MAX_INTEGER):
        raise _Odd
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise _Odd
    return value


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_decoder = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_float,
    parse_constant=_no_constant,
)


# The second look, at what is going to be refused.


def _object_or_fault(pairs: list[tuple[str, Any]]) -> Any:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            return _Fault(f"The key {_short(key)} is there twice; parsers differ on which counts.")
        seen.add(key)
    return dict(pairs)


def _integer_or_fault(text: str) -> Any:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        return _Fault(
            f"{_short_number(text)} is beyond ±(2^53-1), which not every reader of JSON holds "
            "exactly; send it as a string."
        )
    return int(text)


def _float_or_fault(text: str) -> Any:
    value = float(text)
    if not math.isfinite(value):
        return _Fault(f"{_short_number(text)} is too large for a number; send it as a string.")
    return value


def _explain(text: str) -> Problem:
    """The faults of a text, the first ten. What comes after an odd place may still be no JSON."""
    root = json.loads(
        text,
        object_pairs_hook=_object_or_fault,
        parse_int=_integer_or_fault,
        parse_float=_float_or_fault,
        parse_constant=_no_constant,
    )
    return invalid(list(islice(_faults(root), 10)))


def _faults(root: Any) -> Iterator[dict[str, str]]:
    # Pointers are made for what is wrong or has something in it: a body may have millions of
    # values, at places that take thousands of characters.
    stack: list[tuple[str, Iterator[tuple[str, Any]]]] = [("", iter([("", root)]))]
    while stack:
        place, items = stack[-1]
        for step, value in items:
            if not _encodable(step):
                yield {"pointer": place, "detail": f"A key has {_SURROGATE}"}
            elif isinstance(value, _Fault):
                yield {"pointer": place + step, "detail": value.detail}
            elif isinstance(value, str):
                if not _encodable(value):
                    yield {"pointer": place + step, "detail": _SURROGATE}
            elif isinstance(value, list):
                stack.append((place + step, ((f"/{n}", item) for n, item in enumerate(value))))
                break
            elif isinstance(value, dict):
                stack.append(
                    (place + step, ((f"/{escape(key)}", item) for key, item in value.items()))
                )
                break
        else:
            stack.pop()


_SURROGATE = (
    "a lone surrogate, which UTF-8 cannot hold; it comes from text that was decoded wrongly."
)


def escape(key: str) -> str:
    """A key as a step of a JSON pointer (RFC 6901, section 4)."""
    return key.replace("~", "~0").replace("/", "~1")


def _short(key: str) -> str:
    return ascii(key[:60])


def _short_number(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
