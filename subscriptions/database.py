"""Cursors for the statements that are run for every event: each is planned once a connection.

Django's own cursor writes the parameters into the text, so PostgreSQL parses and plans every
statement again. For the statements of this project that costs more than running them: a lone
delivery takes 1.1 ms of PostgreSQL's processor time with them, and 6.3 without.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg
from django.db import (
    DEFAULT_DB_ALIAS,
    InterfaceError,
    InternalError,
    OperationalError,
    connection,
    connections,
    transaction,
)
from django.db.backends.utils import CursorWrapper

from subscriptions.conf import conf

# What Django raises when the database is unreachable, restarting, or (InternalError) read-only for
# a while.
DATABASE_ERRORS = (OperationalError, InterfaceError, InternalError)

# What claims and settlements need, and others that use a connection must not have.
#
# They read what they want by its index even where the statistics are old: PostgreSQL, which
# believes a table small until it has been analysed, would read from end to end one that a minute
# ago was empty, and that now holds a backlog. For the same reason each statement has one plan,
# whatever its parameters. No statement of theirs waits for a lock; the timeout is for what the
# statements do not name, such as an ALTER TABLE.
_WORKERS = {
    "lock_timeout": "200ms",
    # A process that is frozen in the middle of a settlement must not hold its rows for ever.
    "idle_in_transaction_session_timeout": "30s",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_WORKERS_LOCALLY = "SELECT " + ", ".join(
    f"set_config('{name}', '{value}', true)" for name, value in _WORKERS.items()
)

# A server that vanishes without a word, with its machine or behind a firewall, is an error after
# ten seconds or so. Without these the system waits a quarter of an hour, or two hours.
VANISHED_SERVER: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}

_thread = threading.local()


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
    from the text. With the setting `prepared_statements` off it is Django's own cursor. Changes
    no setting of the connection.
    """
    if not conf().prepared_statements:
        return connection.cursor()
    connection.ensure_connection()
    cursor: Any = _Preparing(connection.connection)
    if connection.queries_logged:
        return connection.make_debug_cursor(cursor)
    return connection.make_cursor(cursor)


def as_array(values: Iterable[Any]) -> str:
    """The text of an array of ids or numbers: `%(ids)s::text::uuid[]`.

    It is made six times as quickly as psycopg makes an array.
    """
    return "{" + ",".join(map(str, values)) + "}"


def waited_too_long(error: Exception) -> bool:
    """Whether a statement failed at a lock or at its time, and not because of the server."""
    waits = (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled)
    return isinstance(error.__cause__, waits)


class Statement:
    """A statement of claiming or settling, with parameters by name: `%(name)s::type`.

    On a worker's own connection it is sent with numbered parameters, apart from its text, which
    psycopg then neither takes apart nor puts together: for texts of this length that costs more
    than to run them.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: list[str] = []
        self.numbered = re.sub(r"%\((\w+)\)s", self._number, text).replace("%%", "%")

    def _number(self, found: re.Match[str]) -> str:
        if found[1] not in self.names:
            self.names.append(found[1])
        return f"${self.names.index(found[1]) + 1}"


class WorkerCursor:
    """What claims and settlements are run with; see `worker_cursor`."""

    def __init__(self, cursor: Any, own: Any = None) -> None:
        self._cursor = cursor
        self._own = own

    def execute(self, statement: Statement, parameters: Mapping[str, Any]) -> None:
        if self._own is None:
            self._cursor.execute(statement.text, parameters)
            return
        with self._own.wrap_database_errors:
            values = [parameters[name] for name in statement.names]
            self._cursor.execute(statement.numbered, values, prepare=True)

    def fetchall(self) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._cursor.fetchall()
        return found

    def fetchone(self) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._cursor.fetchone()
        return found


@contextmanager
def worker_cursor() -> Iterator[WorkerCursor]:
    """A cursor for claims and settlements: by indexes, and never long for a lock.

    On a connection of the thread's own (`use_own_connection`) each statement commits by itself,
    if the caller has no transaction; on any other the block is one transaction.
    """
    own = getattr(_thread, "own", None)
    if own is None:
        with transaction.atomic(savepoint=False), prepared_cursor() as cursor:
            cursor.execute(_WORKERS_LOCALLY)
            yield WorkerCursor(cursor)
        return
    own.ensure_connection()
    if own.execute_wrappers or own.queries_logged:
        # Somebody wants to see the statements.
        with prepared_cursor() as cursor:
            yield WorkerCursor(cursor)
        return
    raw = own.connection
    if getattr(_thread, "raw", None) is not raw:
        # Every statement of this connection's own cursor is prepared; Django's others are not.
        raw.prepare_threshold = 0
        _thread.raw, _thread.cursor = raw, WorkerCursor(psycopg.RawCursor(raw), own)
    yield _thread.cursor


def use_own_connection(more: Mapping[str, str] = {}) -> None:
    """Give this thread a database connection outside of the pool, with the workers' settings.

    Nobody else ever uses it, so no setting can leak. Behind PgBouncer, which may give each
    transaction another connection (`prepared_statements` off), the thread uses a connection like
    any other, and `worker_cursor` sets what it needs in each transaction. To be closed by
    `close_own_connection`.
    """
    if not conf().prepared_statements:
        return
    own = connections.create_connection(DEFAULT_DB_ALIAS)
    options = dict(own.settings_dict["OPTIONS"])
    options.pop("pool", None)
    options = VANISHED_SERVER | options
    given = " ".join(f"-c {name}={value}" for name, value in (_WORKERS | dict(more)).items())
    options["options"] = f"{options.get('options', '')} {given}".strip()
    own.settings_dict = {**own.settings_dict, "OPTIONS": options}
    connections[DEFAULT_DB_ALIAS] = own
    _thread.own = own


def close_own_connection() -> None:
    """Close this thread's connection; the next statement opens another, with the same settings."""
    connection.close()
