"""The plans of the statements that this project runs, as PostgreSQL makes them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created
from psycopg import ClientCursor

_PLANNED = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)


# What a nested loop goes through anew for each row.
_WITHOUT_INDEX = ("CTE Scan", "Function Scan", "Materialize")


@dataclass(frozen=True)
class Plan:
    """One statement's: what it reads by which index, and what it reads from end to end.

    An index that is read without a condition on its first column is read from end to end.
    `squared`: it goes through all rows of one thing that has no index for each of another.
    """

    sql: str
    indexes: frozenset[str]
    scanned: frozenset[str]
    scanned_indexes: frozenset[str]
    squared: bool


@dataclass
class Plans:
    """Explains what is executed in the block of `watched`, by any thread.

    `rows_read`: how many rows the block read, of all tables and indexes.
    """

    found: list[Plan] = field(default_factory=list)
    watching: bool = False
    rows_read: int = 0

    @contextmanager
    def watched(self) -> Iterator[list[Plan]]:
        """The plans of the block's statements, complete when it is over."""
        rows = RowsRead()
        self.found, self.watching = [], True
        try:
            yield self.found
        finally:
            self.watching = False
        self.rows_read = rows.so_far()

    def __call__(self, execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        """Wraps Django's execution of a statement: `EXPLAIN` comes first, in the same transaction.

        A server-side cursor can explain nothing; what it reads is meant to be everything.
        """
        text = str(sql)
        named = getattr(context["cursor"].cursor, "name", "")
        if self.watching and _PLANNED.match(text) and not many and not named:
            answer = _explain(context["cursor"].cursor, text, params)
            nodes = list(_nodes((json.loads(answer) if isinstance(answer, str) else answer)[0]))
            self.found.append(
                Plan(
                    sql=text,
                    indexes=frozenset(node["Index Name"] for node in nodes if "Index Name" in node),
                    scanned=frozenset(
                        node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"
                    ),
                    scanned_indexes=frozenset(
                        node["Index Name"]
                        for node in nodes
                        if "Index Name" in node
                        and not re.search(
                            rf"\b{_first_column(context, node['Index Name'])}\b",
                            node.get("Index Cond", ""),
                        )
                    ),
                    squared=any(_is_square(node) for node in nodes),
                )
            )
        answered = execute(sql, params, many, context)
        if not named:
            # This connection's statistics are written down when its transaction ends: also those
            # of before the block, which must not count in it.
            context["cursor"].cursor.connection.execute("SELECT pg_stat_force_next_flush()")
        return answered


def _explain(cursor: Any, text: str, params: Any) -> Any:
    explaining = ClientCursor(cursor.connection)
    if isinstance(cursor, ClientCursor):
        explaining.execute(f"EXPLAIN (FORMAT JSON) {text}", params)
    else:
        # A prepared statement has one plan, whatever its parameters.
        numbers: dict[str, int] = {}
        numbered = re.sub(
            r"%\((\w+)\)s", lambda one: f"${numbers.setdefault(one[1], len(numbers) + 1)}", text
        )
        explaining.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {numbered}")
    (answer,) = explaining.fetchone() or ()
    return answer


def _is_square(node: dict[str, Any]) -> bool:
    if node["Node Type"] != "Nested Loop":
        return False
    sides = {side["Parent Relationship"]: side for side in node["Plans"]}
    # For one row, if no more are expected, going through all is well.
    return sides["Outer"]["Plan Rows"] > 1 and sides["Inner"]["Node Type"] in _WITHOUT_INDEX


def _first_column(context: Any, index: str) -> str:
    (column,) = (
        context["connection"]
        .connection.execute("SELECT pg_get_indexdef(%s::regclass, 1, true)", [index])
        .fetchone()
    )
    return str(column)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    node = plan.get("Plan", plan)
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


class RowsRead:
    """How many rows were read, of all tables and indexes.

    By this thread's connection; and by those of others that have written down their statistics.
    """

    def __init__(self) -> None:
        self._before = self._total()

    def so_far(self) -> int:
        return self._total() - self._before

    def _total(self) -> int:
        with connections["default"].cursor() as cursor:
            # Statistics are else written down a second later.
            cursor.execute("SELECT pg_stat_force_next_flush()")
            cursor.execute("SELECT pg_stat_clear_snapshot()")
            cursor.execute(
                "SELECT (SELECT sum(seq_tup_read) FROM pg_stat_user_tables)::bigint"
                " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)::bigint"
            )
            return int(cursor.fetchone()[0])


@contextmanager
def explaining() -> Iterator[Plans]:
    """Ready to explain, on this thread's connection and on those that are made in the block."""
    plans = Plans()

    def add(connection: Any, **_: Any) -> None:
        connection.execute_wrappers.append(plans)

    connection_created.connect(add)
    try:
        with connections["default"].execute_wrapper(plans):
            yield plans
    finally:
        connection_created.disconnect(add)
