"""Where a time is among the ids of deliveries, and of attempts."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

from django.db import connection
from django.db.models import QuerySet

from deliveries.models import Attempt, Delivery

Row = TypeVar("Row", Delivery, Attempt)

# No index knows when a delivery was made, but ids are given in the order of time. `created_at` is
# when the transaction began, so it is up to `LONGEST` before the moment at which the id was given;
# so is `started_at` of an attempt, which gets its id when it is over.
# Halves the range of ids until two remain, looking at one row each time. All rows up to `low` are
# from before the time; all from `high` on were made after it. Both were seen, not assumed.
LONGEST = timedelta(minutes=10)
_SEARCH = """
WITH RECURSIVE search (low, high) AS (
    SELECT 0::bigint, (SELECT coalesce(max(id), 0) + 1 FROM {table})
    UNION ALL
    SELECT CASE WHEN probe.is_before THEN middle ELSE low END,
        CASE WHEN probe.is_before THEN high ELSE middle END
    FROM (SELECT low, high, (low + high) / 2 AS middle FROM search WHERE high - low > 1) AS range
    CROSS JOIN LATERAL (
        SELECT {column} < %s AS is_before FROM {table}
        WHERE id >= middle ORDER BY id LIMIT 1
    ) AS probe
)
SELECT low, high FROM search ORDER BY high - low LIMIT 1
"""


def oldest(since: datetime) -> int:
    """Deliveries up to this id were made before: what `within` finds, for more than one search."""
    return _find(_of(Delivery), since, -LONGEST)[0]


def within(rows: QuerySet[Row], since: datetime | None, until: datetime | None) -> QuerySet[Row]:
    """Without those that are too old or too new, as far as ids can tell: some of them stay.

    About `created_at` of deliveries, and `started_at` of attempts. Deliveries of a transaction that
    was open for more than ten minutes may be missed.
    """
    search = _of(rows.model)
    if since is not None:
        rows = rows.filter(id__gt=_find(search, since, -LONGEST)[0])
    if until is not None:
        rows = rows.filter(id__lt=_find(search, until, LONGEST)[1])
    return rows


def _of(model: type[Delivery] | type[Attempt]) -> str:
    column = "created_at" if model is Delivery else "started_at"
    return _SEARCH.format(table=model._meta.db_table, column=column)


def _find(search: str, time: datetime, distance: timedelta) -> tuple[int, int]:
    with suppress(OverflowError):  # of the first and the last year that there is
        time += distance
    with connection.cursor() as cursor:
        cursor.execute(search, [time])
        low, high = cursor.fetchone()
        return low, high
