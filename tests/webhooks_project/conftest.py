"""Engines of a test's own: made in its directory, gone when it ends."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from webhooks_project.engines import Cluster
from webhooks_project.engines.cluster import CHECKOUT

MakeCluster = Callable[..., Cluster]
StartUser = Callable[..., subprocess.Popen[str]]

USER = """
import os, subprocess, sys
from webhooks_project.engines import Cluster
cluster = Cluster(sys.argv[1], namespaces=sys.argv[2] == "True")
cluster.ensure()
if sys.argv[3]:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print(child.pid, flush=True)
    os._exit(0)
print("ready", cluster.pid("postgresql"), cluster.pid("valkey"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    made: list[Cluster] = []

    def make(directory: Path, *args: object, **options: object) -> Cluster:
        made.append(Cluster(directory, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        cluster.release()
    for cluster in made:
        assert cluster.wait_until_stopped(30)


@pytest.fixture
def cluster(tmp_path: Path, make_cluster: MakeCluster) -> Cluster:
    return make_cluster(tmp_path / "local")


@pytest.fixture
def start_user() -> Iterator[StartUser]:
    """Other processes that use the engines of a directory until their stdin is closed."""
    started: list[subprocess.Popen[str]] = []

    def start(
        directory: Path, *, namespaces: bool = True, leave_a_child: bool = False
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", USER, str(directory)),
                *(str(namespaces), "child" if leave_a_child else ""),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def query(cluster: Cluster, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(cluster.layout.database_url) as connection:
        cursor = connection.execute(sql)  # type: ignore[call-overload]
        return list(cursor.fetchall()) if cursor.description else []


def flags(cluster: Cluster) -> "redis.Redis[str]":
    return redis.Redis.from_url(cluster.layout.redis_url, decode_responses=True)
