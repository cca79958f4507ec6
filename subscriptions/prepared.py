"""A cursor for the statements that are run for every event: each is planned once a connection.

Django's own cursor writes the parameters into the text, so PostgreSQL parses and plans every
statement anew. For the statements of this project that costs more than running them.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import psycopg
from django.db import connection
from django.db.backends.utils import CursorWrapper
from psycopg.pq import TransactionStatus

from subscriptions.conf import conf

# Connections that were told how to plan.
_told: WeakSet[psycopg.Connection[Any]] = WeakSet()


class _Preparing(psycopg.Cursor[Any]):
    def execute(
        self, query: Any, params: Any = None, *, prepare: bool | None = True, **more: Any
    ) -> _Preparing:
        # For this statement alone: with a threshold the connection also counts, and keeps, the
        # text of every statement that Django makes. None is Django's way to say never.
        threshold = self.connection.prepare_threshold
        self.connection.prepare_threshold = threshold or 1
        try:
            super().execute(query, params, prepare=prepare, **more)
        finally:
            self.connection.prepare_threshold = threshold
        return self


def prepared_cursor() -> CursorWrapper:
    """A cursor like `connection.cursor()`, in the same transaction, whose statements are prepared.

    Every parameter needs a type in the statement (`%(ids)s::uuid[]`): PostgreSQL gets them apart
    from the text. With the setting `prepared_statements` off it is Django's own cursor.
    """
    if not conf().prepared_statements:
        return connection.cursor()
    connection.ensure_connection()
    with connection.wrap_database_errors:
        raw: Any = connection.connection
        if raw not in _told:
            _tell(raw)
        cursor: Any = _Preparing(raw)
    if connection.queries_logged:
        return connection.make_debug_cursor(cursor)
    return connection.make_cursor(cursor)


def _tell(raw: psycopg.Connection[Any]) -> None:
    """Have each statement planned once, whatever its parameters: all go by the same indexes.

    PostgreSQL would plan those with few parameters anew each time, because a plan made for many
    looks dearer than it is.
    """
    autocommit = raw.autocommit
    idle = raw.info.transaction_status == TransactionStatus.IDLE
    # Within a transaction that is rolled back it is forgotten, which costs speed and no more.
    if idle:
        raw.autocommit = True
    try:
        raw.execute("SET plan_cache_mode = force_generic_plan")
    finally:
        if idle and not raw.closed:
            raw.autocommit = autocommit
    _told.add(raw)
