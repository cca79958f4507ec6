"""What deliveries cost PostgreSQL: WAL, rows written, and dead rows left behind."""

from __future__ import annotations

from typing import Any

import psycopg
from measuring import wait_until

_ROWS = """
SELECT sum(n_tup_ins), sum(n_tup_upd), sum(n_tup_hot_upd), sum(n_tup_del), sum(n_dead_tup),
    (SELECT count(*) FROM deliveries_delivery)
FROM pg_stat_user_tables WHERE schemaname = 'public' AND relname LIKE 'deliveries\\_%'
"""
_ADDED_UP = """
SELECT n_tup_ins >= (SELECT count(*) FROM deliveries_delivery)
FROM pg_stat_user_tables WHERE schemaname = 'public' AND relname = 'deliveries_delivery'
"""
_NAMES = ("inserted", "updated", "updated_hot", "deleted", "dead")


def wal_bytes(connection: psycopg.Connection[Any]) -> int:
    """Bytes of WAL written since the cluster was made."""
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
    return int(row[0]) if row else 0


def rows(connection: psycopg.Connection[Any]) -> dict[str, float]:
    """Rows written to the tables of deliveries and dead in them now, for each delivery there is.

    Since the database was made; by processes that have ended, or have been idle for 10 s: that
    is when PostgreSQL adds up what a process did last.
    """
    wait_until(
        lambda: connection.execute(_ADDED_UP).fetchone() == (True,), 20, "statistics of all rows"
    )
    row = connection.execute(_ROWS).fetchone()
    if row is None or not row[-1]:
        return {}
    return {
        f"rows_{name}": float(value) / row[-1] for name, value in zip(_NAMES, row, strict=False)
    }
