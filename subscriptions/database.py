"""Cursors for the statements that are run for every event: each is planned once a connection.

Django's own cursor writes the parameters into the text, so PostgreSQL parses and plans every
statement anew. For the statements of this project that costs more than running them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from psycopg.pq import TransactionStatus

from subscriptions.conf import conf

# Have each statement planned once, whatever its parameters: all go by the same indexes.
# PostgreSQL would plan those with few parameters anew each time, because a plan made for many
# looks dearer than it is.
_PREPARED = {"plan_cache_mode": "force_generic_plan"}
# What claims and settlements need, and others that use the connection must not have.
#
# One subscription's row, held by an operator's open transaction, must not hold up the others
# that happen to be in the same batch. And they read what they want by its index even where the
# statistics are old: PostgreSQL, which believes a table small until it has been analysed, would
# read from end to end one that a minute ago was empty, and that now holds a backlog.
_WORKERS = {
    "lock_timeout": "200ms",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_WORKERS_LOCALLY = "SELECT " + ", ".join(
    f"set_config('{name}', '{value}', true)" for name, value in _WORKERS.items()
)

_thread = threading.local()
# Connections that were told, and what.
_told: WeakKeyDictionary[psycopg.Connection[Any], dict[str, str]] = WeakKeyDictionary()


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
        # An application's connection is told nothing: it would keep it, and so would whoever gets
        # the connection from a pool after it.
        if _is_own():
            _tell(raw, _PREPARED | _WORKERS)
        cursor: Any = _Preparing(raw)
    if connection.queries_logged:
        return connection.make_debug_cursor(cursor)
    return connection.make_cursor(cursor)


@contextmanager
def worker_cursor() -> Iterator[CursorWrapper]:
    """A prepared cursor for claims and settlements: by indexes, and never long for a lock.

    On a connection of the thread's own (`own_connection`) each statement commits by itself, if
    the caller has no transaction; on any other the block is one transaction.
    """
    if _is_own():
        with prepared_cursor() as cursor:
            yield cursor
        return
    with transaction.atomic(savepoint=False), prepared_cursor() as cursor:
        cursor.execute(_WORKERS_LOCALLY)
        yield cursor


def own_connection() -> None:
    """Say that this thread's connection runs claims and settlements, and what follows from them.

    It keeps their settings then, instead of hearing them in each transaction. To be given back
    by `give_back_connection`.
    """
    _thread.own = True


def give_back_connection() -> None:
    """Close this thread's connection; whoever gets it from a pool finds it as it came."""
    raw = connection.connection
    told = _told.pop(raw, {}) if raw is not None else {}
    if raw is not None and not raw.closed and told.keys() & _WORKERS.keys():
        try:
            if raw.info.transaction_status != TransactionStatus.IDLE:
                raise psycopg.OperationalError("in the middle of something")
            raw.execute(_reset(told))
        except psycopg.Error:
            raw.close()
    connection.close()


def _is_own() -> bool:
    # PgBouncer, which the setting is there for, may give each transaction another connection.
    return getattr(_thread, "own", False) and conf().prepared_statements


def _reset(names: Iterable[str]) -> str:
    return "; ".join(f"RESET {name}" for name in names)


def _tell(raw: psycopg.Connection[Any], settings: dict[str, str]) -> None:
    told = _told.get(raw, {})
    if told == settings:
        return
    autocommit = raw.autocommit
    idle = raw.info.transaction_status == TransactionStatus.IDLE
    # Within a transaction that is rolled back it is forgotten, which costs speed and no more: the
    # connections of claims and settlements are told before they begin one.
    if idle:
        raw.autocommit = True
    try:
        if too_much := told.keys() - settings.keys():
            raw.execute(_reset(too_much))
        raw.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()))
    finally:
        if idle and not raw.closed:
            raw.autocommit = autocommit
    _told[raw] = settings
