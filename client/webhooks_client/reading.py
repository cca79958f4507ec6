"""From JSON to frozen dataclasses, by their types. Keys that a class does not know are ignored, so
that a client is not too old for a server."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def read(kind: Callable[..., T], value: Any) -> T:
    """`value`, as JSON has it, as an object of the dataclass `kind`.

    Raises `ValueError` if it lacks a field that has no default, or one has another type.
    """
    made: T = _reader(kind)(value)
    return made


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    if kind is datetime:
        return lambda value: datetime.fromisoformat(_plain(value, str))
    if kind is Any:
        return lambda value: value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        item = _reader(arguments[0])
        return lambda value: tuple(item(one) for one in _plain(value, list))
    if origin is dict:
        entry = _reader(arguments[1])
        return lambda value: {name: entry(one) for name, one in _plain(value, dict).items()}
    if origin in (types.UnionType, typing.Union):
        inner = _reader(next(one for one in arguments if one is not type(None)))
        return lambda value: None if value is None else inner(value)
    if kind is float:
        return lambda value: float(_plain(value, int | float))
    return lambda value: _plain(value, kind)


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = typing.get_type_hints(kind)
    readers = {one.name: _reader(hints[one.name]) for one in dataclasses.fields(kind)}
    needed = {
        one.name
        for one in dataclasses.fields(kind)
        if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    }

    def make(value: Any) -> Any:
        body: Mapping[str, Any] = _plain(value, dict)
        if missing := needed - body.keys():
            raise ValueError(f"{kind.__name__} lacks {', '.join(sorted(missing))}")
        return kind(**{name: readers[name](body[name]) for name in readers if name in body})

    return make


def _plain(value: Any, kind: Any) -> Any:
    # A bool is an int to Python, and is none to JSON.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{value!r:.80} is not {kind}")
    return value
