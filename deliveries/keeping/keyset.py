"""Pages of large tables: where a page ends is a place in the order, not a number of rows.

So a page stays right while rows are added or removed, and the hundredth costs what the first does.
Nothing is counted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Model, Q, QuerySet

# Rows that `page` looks at for one page: some tens of milliseconds. Where they must be read from a
# slow disk first, it stops earlier: it begins no further look after so many seconds.
MAX_LOOKED_AT = 10_000
MAX_SECONDS = 0.25

Row = TypeVar("Row", bound=Model)


class Place(NamedTuple):
    """A place in an order: at the row with these values, and behind it, or before it with `at`."""

    values: tuple[Any, ...]
    at: bool = False


class BadPlace(ValueError):
    """The text is no place in this order."""


@dataclass(frozen=True, slots=True)
class Search(Generic[Row]):
    """`rows` are found by an index, in the order `by`; of these, the `chosen` are wanted.

    `by` names fields of the rows, or annotations, that are never null; the last of them is unique.
    An index on them, in this order, is what makes it cheap.
    """

    rows: QuerySet[Row]
    chosen: Q
    by: tuple[str, ...] = ("-id",)

    @property
    def wanted(self) -> QuerySet[Row]:
        """All that are wanted, in order; not for reading from end to end."""
        return self.rows.filter(self.chosen).order_by(*self.by)


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """`first` and `last`: the places between which these rows are. None for `first`: nothing comes
    before them; for `last`: nothing comes after. `gave_up_after`: so many rows were looked
    at, and there are more to look at, with which the next page goes on; 0 if none are missing."""

    rows: list[Row]
    first: Place | None = None
    last: Place | None = None
    gave_up_after: int = 0

    @property
    def stopped(self) -> bool:
        return self.gave_up_after > 0


def page(
    search: Search[Row], place: Place | None = None, *, limit: int, backwards: bool = False
) -> Page[Row]:
    """`limit` rows at most, those next after `place`, or with `backwards` next before it.

    At most `MAX_LOOKED_AT` rows are looked at, fewer if that takes long. So a page may hold fewer
    rows than `limit`, even none, and there may be more. Rows that come in between two pages are on
    neither.
    """
    by = _opposite(search.by) if backwards else search.by
    rows, end, gave_up_after = _following(search, by, place, limit)
    if backwards:
        rows.reverse()
        return Page(rows, end, _place(rows[-1], by) if rows else _turned(place), gave_up_after)
    start = None if place is None else _place(rows[0], by) if rows else _turned(place)
    return Page(rows, start, end, gave_up_after)


def _following(
    search: Search[Row], by: tuple[str, ...], place: Place | None, limit: int
) -> tuple[list[Row], Place | None, int]:
    """The rows; the place from which more can be found, if any; after how many rows it gave up."""
    ordered = search.rows.order_by(*by)
    following = ordered
    if place is not None:
        following = ordered.filter(_after(by, place.values, or_at=place.at))
    if not search.chosen:
        return _cut(list(following[: limit + 1]), by, limit)
    found: list[Row] = []
    looked_at, some, began = 0, 10 * limit, monotonic()  # most often what is wanted is near
    while True:
        some = min(some, MAX_LOOKED_AT - looked_at)
        last = following.values_list(*names(by))[some - 1 : some].first()
        near = following if last is None else following.filter(_upto(by, last))
        found += near.filter(search.chosen)[: limit + 1 - len(found)]
        if len(found) > limit or last is None:
            return _cut(found, by, limit)
        looked_at += some
        if looked_at >= MAX_LOOKED_AT or monotonic() - began > MAX_SECONDS:
            return found, Place(last), looked_at
        following = ordered.filter(_after(by, last))
        some *= 2


def _cut(rows: list[Row], by: tuple[str, ...], limit: int) -> tuple[list[Row], Place | None, int]:
    more = len(rows) > limit
    del rows[limit:]
    return rows, _place(rows[-1], by) if more else None, 0


def names(by: Sequence[str]) -> list[str]:
    return [name.removeprefix("-") for name in by]


def _opposite(by: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name[1:] if name.startswith("-") else f"-{name}" for name in by)


def _place(row: Row, by: tuple[str, ...]) -> Place:
    return Place(tuple(getattr(row, name) for name in names(by)))


def _turned(place: Place | None) -> Place | None:
    """The same place for the opposite direction: the row at it is on the other side."""
    return None if place is None else Place(place.values, not place.at)


def _upto(by: tuple[str, ...], values: Sequence[Any]) -> Q:
    return _after(_opposite(by), values, or_at=True)


def _after(by: tuple[str, ...], values: Sequence[Any], *, or_at: bool = False) -> Q:
    """`(a, b) < (x, y)`, each field in its direction; with `or_at`, `<=`. The first condition of
    each alone is what the index is entered with: `a <= x AND (a < x OR b < y)`."""
    name, value = by[0].removeprefix("-"), values[0]
    beyond = "lt" if by[0].startswith("-") else "gt"
    if len(by) == 1:
        return Q(**{f"{name}__{beyond}{'e' if or_at else ''}": value})
    return Q(**{f"{name}__{beyond}e": value}) & (
        Q(**{f"{name}__{beyond}": value}) | _after(by[1:], values[1:], or_at=or_at)
    )


def written(place: Place) -> str:
    """The place as a text, which `read_place` reads again."""
    texts = [v.isoformat() if isinstance(v, datetime) else str(v) for v in place.values]
    return json.dumps([*texts, True] if place.at else texts)


def read_place(text: str, search: Search[Any]) -> Place:
    """Raises `BadPlace`."""
    try:
        texts = json.loads(text)
        fields = [_field(search.rows, name) for name in names(search.by)]
        if not isinstance(texts, list):
            raise BadPlace
        at = texts[len(fields) :] == [True]
        if len(texts) != len(fields) + at:
            raise BadPlace
        return Place(tuple(_value(*one) for one in zip(fields, texts, strict=False)), at)
    except (ValueError, TypeError, ValidationError, RecursionError):
        raise BadPlace from None


def _field(rows: QuerySet[Any], name: str) -> Any:
    if name in rows.query.annotations:
        return rows.query.annotations[name].output_field
    return next(one for one in rows.model._meta.concrete_fields if name in (one.name, one.attname))


def _value(field: Any, text: Any) -> Any:
    if not isinstance(text, str) or not text.isprintable():
        raise BadPlace
    value = field.to_python(text)
    if value is None or (isinstance(value, int) and abs(value) >= 2**63):
        raise BadPlace
    return value
