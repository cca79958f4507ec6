"""Fixtures that every test may want."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import hypothesis
import pytest
import redis
from django.conf import settings

from webhooks_project import engines

# The same examples each time, and no deadline: a busy machine is no bug.
hypothesis.settings.register_profile("house", deadline=None, derandomize=True)
hypothesis.settings.load_profile("house")

Answer = TypeVar("Answer")
CLUSTER = pytest.StashKey[engines.Cluster]()


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


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: two processes for each core, because most of the time is waiting."""
    return 2 * (os.cpu_count() or 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


def empty_redis() -> redis.Redis:
    """A client of this process's broker, after emptying both of its databases."""
    layout = engines.Layout.of(engines.local_dir())
    number = settings.BROKER_DATABASE
    for one in (number, number + 1):
        with redis.Redis.from_url(layout.redis_url(one)) as client:
            client.flushdb()
    broker: redis.Redis = redis.Redis.from_url(layout.redis_url(number))
    return broker


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
