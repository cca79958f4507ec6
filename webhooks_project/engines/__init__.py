"""The database and the broker of a checkout: embedded, unless the environment names others.

With `DATABASE_URL` unset, PostgreSQL 18 runs from a wheel; with `REDIS_URL`
unset, Valkey does. Both live in `.local/` of the checkout (or in
`WEBHOOKS_LOCAL_DIR`), listen on Unix sockets alone, are started by the first
process that connects and stopped after the last one that did.

Everything but `ensure()` only computes: settings can be imported, and most
commands run, without a process being started.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dj_database_url

from webhooks_project.engines.cluster import CHECKOUT, Cluster
from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.layout import (
    DATABASE,
    DATABASE_USER,
    POSTGRESQL,
    VALKEY,
    Layout,
)

__all__ = [
    "Cluster",
    "EngineError",
    "Engines",
    "broker_url",
    "configured",
    "database_params",
    "embedded_database",
    "embedded_redis",
    "ensure",
    "local_dir",
    "redis_url",
]

BACKEND = "webhooks_project.postgresql"


@dataclass(frozen=True)
class Engines:
    """The addresses that this process's environment asks for."""

    database_url: str
    database: dict[str, Any]
    """For Django's DATABASES; options can be added to it."""
    redis_url: str
    """For redis-py: flags, circuit breakers' helpers, never queues."""
    broker_url: str
    """For Celery."""


def _setting(name: str) -> str:
    return os.environ.get(name, "").strip()


def embedded_database() -> bool:
    """Is `DATABASE_URL` unset or empty?"""
    return not _setting("DATABASE_URL")


def embedded_redis() -> bool:
    """Is `REDIS_URL` unset or empty?"""
    return not _setting("REDIS_URL")


def local_dir() -> Path:
    return Path(_setting("WEBHOOKS_LOCAL_DIR") or CHECKOUT / ".local")


def database_params() -> dict[str, Any]:
    """The entry for Django's DATABASES. Raises ValueError for a `DATABASE_URL` nobody can read."""
    if not embedded_database():
        return dict(dj_database_url.parse(_setting("DATABASE_URL")))
    layout = Layout.of(local_dir())
    return {
        "ENGINE": BACKEND,
        "NAME": DATABASE,
        "USER": DATABASE_USER,
        "PASSWORD": "",
        "HOST": str(layout.postgresql_host),
        "PORT": "",
    }


def redis_url() -> str:
    return _setting("REDIS_URL") or Layout.of(local_dir()).redis_url


def broker_url() -> str:
    """`CELERY_BROKER_URL`, else `REDIS_URL`, else the embedded Valkey."""
    return (
        _setting("CELERY_BROKER_URL") or _setting("REDIS_URL") or Layout.of(local_dir()).broker_url
    )


def configured() -> Engines:
    """The addresses; nothing is started."""
    return Engines(
        database_url=_setting("DATABASE_URL") or Layout.of(local_dir()).database_url,
        database=database_params(),
        redis_url=redis_url(),
        broker_url=broker_url(),
    )


def ensure() -> Engines:
    """Return when every engine that is embedded accepts work; start what does not run.

    Idempotent, thread-safe and cheap (tens of microseconds) when all is well,
    so it may be called before every connection. From the first call on, this
    process counts as a user, and the engines run at least as long as it does.
    Raises EngineError with the reason and what to do.
    """
    wanted = [
        name
        for name, embedded in ((POSTGRESQL, embedded_database()), (VALKEY, embedded_redis()))
        if embedded
    ]
    if wanted:
        _cluster(str(local_dir()), tuple(wanted)).ensure()
    return configured()


@cache
def _cluster(directory: str, engines: tuple[str, ...]) -> Cluster:
    return Cluster(directory, engines)
