"""Lists, a page at a time: where a page ends is a place in the order, not a number of rows.

So a page stays right while rows are added or removed, and the hundredth costs what the first does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from django.core.exceptions import ValidationError
from django.db.models import Field, Model, Q, QuerySet
from ninja import Query
from pydantic import BaseModel
from pydantic import Field as Described

from api.problems import Problem
from subscriptions.secrets import crypto

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
# Rows that `page_of_chosen` looks at for one page: some tens of milliseconds.
MAX_LOOKED_AT = 10_000

Row = TypeVar("Row", bound=Model)
Item = TypeVar("Item")

Limit = Annotated[
    int, Query(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="How many rows, at most.")
]
Cursor = Annotated[
    str | None,
    Query(
        None,
        max_length=2000,
        description="`next_cursor` of the page before, as it is; none: the first.",
    ),
]


class Listed(BaseModel, Generic[Item]):
    """A page of a list."""

    data: list[Item]
    next_cursor: str | None = Described(
        description="What to send as `cursor` for the next page; null: this is the last one."
    )


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    rows: list[Row]
    next_cursor: str | None


def page(
    queryset: QuerySet[Row],
    *,
    by: tuple[str, ...] = ("-created_at", "-id"),
    cursor: str | None,
    limit: int,
) -> Page[Row]:
    """The rows after `cursor`, `limit` at most, in one statement.

    `by` names fields of the model itself that are never null, the last of them unique; an index
    on them, in this order, is what makes it cheap. Raises `Problem` (422 `bad-cursor`).
    """
    rows = list(_following(queryset, by, cursor)[: limit + 1])
    if len(rows) <= limit:
        return Page(rows, None)
    del rows[limit:]
    return Page(rows, _written([getattr(rows[-1], name) for name in _names(by)]))


def page_of_chosen(
    queryset: QuerySet[Row],
    chosen: Q,
    *,
    by: tuple[str, ...] = ("-created_at", "-id"),
    cursor: str | None,
    limit: int,
) -> Page[Row]:
    """`page` of those rows of `queryset` that are `chosen` by what no index knows.

    No more than `MAX_LOOKED_AT` rows are looked at. So a page may hold fewer rows than `limit`,
    even none, and still have a cursor that leads on.
    """
    if not chosen:
        return page(queryset, by=by, cursor=cursor, limit=limit)
    following = _following(queryset, by, cursor)
    opposite = tuple(name[1:] if name.startswith("-") else f"-{name}" for name in by)
    count = 10 * limit  # most often what is wanted is near
    while True:
        count = min(count, MAX_LOOKED_AT)
        last = following.values_list(*_names(by))[count - 1 : count].first()
        near = following if last is None else following.filter(_after(opposite, last, or_at=True))
        found = page(near.filter(chosen), by=by, cursor=None, limit=limit)
        if found.next_cursor is not None or last is None:
            return found
        if count == MAX_LOOKED_AT:
            return Page(found.rows, _written(last))
        count *= 4


def _names(by: tuple[str, ...]) -> list[str]:
    return [name.removeprefix("-") for name in by]


def _following(queryset: QuerySet[Row], by: tuple[str, ...], cursor: str | None) -> QuerySet[Row]:
    """The rows after the cursor, in order."""
    if cursor:
        fields = [queryset.model._meta.get_field(name) for name in _names(by)]
        queryset = queryset.filter(_after(by, _read(cursor, fields)))
    return queryset.order_by(*by)


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


def _written(values: Sequence[Any]) -> str:
    texts = [v.isoformat() if isinstance(v, datetime) else str(v) for v in values]
    # Encrypted: the row at which a page ends may be a stranger's.
    return crypto.encrypt(json.dumps(texts).encode())


def _read(cursor: str, fields: list[Any]) -> list[Any]:
    try:
        texts = json.loads(crypto.decrypt(cursor))
        if len(texts) != len(fields):
            raise ValueError
        return [_value(field, text) for field, text in zip(fields, texts, strict=True)]
    except (crypto.SecretUnreadable, ValueError, TypeError, ValidationError):
        raise bad_cursor(
            "Send the next_cursor of the page before as it is, or none for the first page.",
            {"parameter": "cursor", "detail": "It is not a next_cursor of this list."},
        ) from None


def bad_cursor(detail: str, error: dict[str, str]) -> Problem:
    """422 for a cursor that was never given, or was changed; `error` names its place."""
    return Problem(422, "bad-cursor", "The cursor is not one of this list", detail, errors=[error])


def _value(field: Field[Any, Any], text: Any) -> Any:
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError
    value = field.to_python(text)
    if value is None or (isinstance(value, int) and abs(value) >= 2**63):
        raise ValueError
    return value
