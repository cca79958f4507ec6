"""Whether everything that sending needs is there, and up to date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import current_app
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from deliveries.monitoring import sweeps
from deliveries.monitoring.asking import Kept, NoAnswer, ask
from deliveries.waking import wakeups

# How long an answer is waited for, and how long what was found is given to others, in seconds.
TIMEOUT = 1.8
KEPT = 1.0


class NotReady(Exception):
    """What is missing, in words that anybody may read."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """`checks`: what was found of each; `ok` is among it, and `problem` if it is not."""

    ready: bool
    checks: dict[str, dict[str, Any]]

    def as_json(self) -> dict[str, Any]:
        return {"status": "ready" if self.ready else "not ready", "checks": self.checks}


def _database() -> dict[str, Any]:
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        if cursor.fetchone() == ("on",):
            raise NotReady("read-only")
    return {}


def _migrations() -> dict[str, Any]:
    executor = MigrationExecutor(connection)
    missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if missing:
        raise NotReady(f"{missing} not applied: run `manage.py migrate`")
    return {}


def _redis() -> dict[str, Any]:
    wakeups.client().ping()
    return {}


def _broker() -> dict[str, Any]:
    with current_app.connection_for_write() as broker:
        broker.connect()
    return {}


def _sweep() -> dict[str, Any]:
    since = sweeps.seconds_since_sweep()
    look = "look at beat, and at a worker of the queue `maintenance`"
    if since is None:
        raise NotReady(f"there was none yet: {look}")
    if since > sweeps.missed_after():
        raise NotReady(f"the last one ended {since:.0f} s ago: {look}")
    return {"seconds_ago": round(since, 1)}


CHECKS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "database": _database,
    "migrations": _migrations,
    "redis": _redis,
    "broker": _broker,
    "sweep": _sweep,
}


def _check() -> Readiness:
    checks = {name: _words(found) for name, found in ask(CHECKS, TIMEOUT).items()}
    return Readiness(all(check["ok"] for check in checks.values()), checks)


def _words(found: dict[str, Any] | Exception) -> dict[str, Any]:
    if not isinstance(found, Exception):
        return {"ok": True, **found}
    # The text of a driver's error has names of hosts and users in it.
    known = isinstance(found, NotReady | NoAnswer)
    return {"ok": False, "problem": str(found) if known else type(found).__name__}


_kept = Kept(_check, KEPT)


def readiness() -> Readiness:
    """What is missing, within two seconds or so, and at most a second old.

    Costs some 5 ms of processor time, most of it for the list of migrations.
    """
    return _kept.get()
