"""Fixtures that every test may want."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import psycopg
import pytest
import redis
from django.conf import settings
from django.test import TransactionTestCase

from webhooks_project import engines

# The same examples each time, and no deadline: a busy machine is no bug.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True)
hypothesis.settings.load_profile("project")

Answer = TypeVar("Answer")
ROOT = Path(__file__).resolve().parent.parent
CLUSTER = pytest.StashKey[engines.Cluster]()


def pytest_configure() -> None:
    """A program that is started in the background of a shell, as CI may start this, ignores
    Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """What is there by now stays; to look through it again and again costs a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the engines, once: with pytest-xdist all its processes share them."""
    config = session.config
    if hasattr(config, "workerinput") or config.option.collectonly:
        return
    cluster = engines.Cluster(engines.local_dir())
    config.stash[CLUSTER] = cluster
    try:
        cluster.__enter__()
        config.add_cleanup(lambda: cluster.__exit__())
        cluster.start()
    except engines.EngineError as error:
        raise pytest.UsageError(str(error)) from None
    if template := getattr(settings, "TEMPLATE", ""):
        _prepare(cluster.layout, template)


def _prepare(layout: engines.Layout, template: str) -> None:
    """Make the database that is copied for each process, unless it is there and up to date."""
    made_of = hashlib.sha256()
    for path in [ROOT / "requirements.txt", *sorted(ROOT.glob("*/migrations/*.py"))]:
        made_of.update(path.read_bytes())
    with psycopg.connect(
        host=str(layout.run), user=engines.DATABASE_USER, dbname="postgres", autocommit=True
    ) as server:
        # Nothing here outlives the machine, and plans must not depend on when it was last analyzed.
        for name in ("fsync", "full_page_writes", "autovacuum"):
            server.execute(f"ALTER SYSTEM SET {name} = off")
        server.execute("SELECT pg_reload_conf()")
        found = server.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s",
            [template],
        ).fetchone()
        if found is not None and found[0] == made_of.hexdigest():
            return
        server.execute(f"DROP DATABASE IF EXISTS {template} WITH (FORCE)")
        server.execute(f"CREATE DATABASE {template}")
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
            env={
                **os.environ,
                "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
                "DATABASE_URL": f"postgresql://{engines.DATABASE_USER}@/{template}?host={layout.run}",
                "REDIS_URL": layout.redis_url(),
                "SECRET_KEY": settings.SECRET_KEY,
            },
            cwd=ROOT,
            check=True,
        )
        server.execute(f"COMMENT ON DATABASE {template} IS '{made_of.hexdigest()}'")


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two processes for each core, because most of the time is waiting."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


# What migrations put there, and no test changes.
_KEPT = [
    "django_migrations",
    "django_content_type",
    "auth_permission",
    "auth_group",
    "auth_group_permissions",
]


def _empty_tables(*_: Any) -> None:
    """After a test that commits. Django's own way empties all tables, and then makes the content
    types, permissions and groups again: 0.1 s for each test."""
    from django.db import connection

    with connection.cursor() as cursor:
        # By size: where rows were deleted, or rolled back, plans would still reckon with them.
        cursor.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind = 'r' AND relname <> ALL(%s) AND pg_relation_size(oid) > 0",
            [_KEPT],
        )
        if filled := [row[0] for row in cursor.fetchall()]:
            cursor.execute(f"TRUNCATE {', '.join(filled)} CASCADE")


@pytest.fixture(scope="session", autouse=True)
def _quick_teardown() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(TransactionTestCase, "_fixture_teardown", _empty_tables)
        yield


def empty_redis() -> redis.Redis:
    """A client of this process's broker, after emptying both of its databases."""
    layout = engines.Layout.of(engines.local_dir())
    number = settings.BROKER_DATABASE
    for one in (number, number + 1):
        with redis.Redis.from_url(layout.redis_url(one)) as client:
            client.flushdb()
    broker: redis.Redis = redis.Redis.from_url(layout.redis_url(number))
    return broker


@pytest.fixture(scope="session", autouse=True)
def _patient_pages() -> Iterator[None]:
    """How much a page looks at does not depend on how busy the machine is."""
    from deliveries.keeping import keyset

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(keyset, "MAX_SECONDS", 600.0)
        yield


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Change `settings.WEBHOOKS` for one test: `configure(circuit_threshold=2)`."""

    def change(**values: Any) -> None:
        settings.WEBHOOKS = replace(settings.WEBHOOKS, **values)

    return change


@pytest.fixture
def at_once() -> Callable[..., list[Any]]:
    """Run a function in many threads that begin together, each with a connection of its own."""
    from django.db import connection

    def run(function: Callable[[int], Answer], threads: int) -> list[Answer]:
        barrier = threading.Barrier(threads)

        def one(number: int) -> Answer:
            try:
                barrier.wait(30)
                return function(number)
            finally:
                connection.close()

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(one, range(threads)))

    return run
