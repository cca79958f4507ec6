"""Lists, a page at a time: `deliveries.keeping.keyset`, with places as cursors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from django.db.models import Model, Q, QuerySet
from ninja import Query
from pydantic import BaseModel
from pydantic import Field as Described

from api.problems import Problem
from deliveries.keeping import keyset
from deliveries.keeping.keyset import Search
from subscriptions.secrets import crypto

MAX_LIMIT = 200
DEFAULT_LIMIT = 50

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
    return page_of(Search(queryset, Q(), by), cursor=cursor, limit=limit)


def page_of(search: Search[Row], *, cursor: str | None, limit: int) -> Page[Row]:
    """As `keyset.page` has it: a page may hold fewer rows than `limit`, even none, and still have a
    cursor that leads on. Raises `Problem` (422 `bad-cursor`)."""
    found = keyset.page(search, _read(cursor, search) if cursor is not None else None, limit=limit)
    return Page(found.rows, None if found.last is None else _written(found.last))


def _written(place: keyset.Place) -> str:
    # Encrypted: the row at which a page ends may be a stranger's.
    return crypto.encrypt(keyset.written(place).encode())


def _read(cursor: str, search: Search[Any]) -> keyset.Place:
    try:
        return keyset.read_place(crypto.decrypt(cursor).decode(), search)
    except (crypto.SecretUnreadable, keyset.BadPlace, UnicodeError):
        raise bad_cursor(
            "Send the next_cursor of the page before as it is, or none for the first page.",
            {"parameter": "cursor", "detail": "It is not a next_cursor of this list."},
        ) from None


def bad_cursor(detail: str, error: dict[str, str]) -> Problem:
    """422 for a cursor that was never given, or was changed; `error` names its place."""
    return Problem(422, "bad-cursor", "The cursor is not one of this list", detail, errors=[error])
