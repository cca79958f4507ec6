"""Pages of tables with millions of rows, without counting them all."""

from __future__ import annotations

import json
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.core.paginator import Paginator
from django.db import OperationalError, connection, transaction
from django.utils.functional import cached_property
from psycopg.errors import QueryCanceled

# Up to this many rows by the planner's estimate, they are counted.
WORTH_COUNTING = 50_000
# But for no longer than this.
COUNT_MILLISECONDS = 200


class EstimatingPaginator(Paginator):  # type: ignore[type-arg]
    """Counts what is quickly counted, and takes PostgreSQL's estimate for all else.

    With an estimate, pages near the end may be missing or empty.
    """

    @cached_property
    def count(self) -> int:
        estimate = estimated_rows(self.object_list)
        if estimate > WORTH_COUNTING:
            return estimate
        try:
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute(f"SET LOCAL statement_timeout = {COUNT_MILLISECONDS}")
                counted = int(self.object_list.count())  # type: ignore[attr-defined]
                # Nothing was written; this takes the time limit back in an outer transaction.
                transaction.set_rollback(True)
                return counted
        except OperationalError as error:
            if not isinstance(error.__cause__, QueryCanceled):
                raise
            return estimate


def estimated_rows(queryset: Any) -> int:
    """How many rows PostgreSQL expects the query to bring, by its statistics."""
    try:
        sql, parameters = queryset.order_by().query.sql_with_params()
    except EmptyResultSet:
        return 0
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters)
        (plan,) = cursor.fetchone()
    if isinstance(plan, str):
        plan = json.loads(plan)
    return int(plan[0]["Plan"]["Plan Rows"])
