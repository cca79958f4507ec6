"""Where the benchmarks run: a directory with engines of its own, and receivers."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
from measuring import BenchmarkError, Growing, run
from psycopg import sql

from webhooks_project.engines import (
    DATABASE,
    DATABASE_PORT,
    DATABASE_USER,
    POSTGRESQL,
    VALKEY,
    Cluster,
    Layout,
)

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
# Ours, with its tables made and nothing in them; copied for each trial.
_EMPTY = "webhooks_empty"


class Place:
    """The engines below one directory, and the databases in them."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory = directory
        self._cluster = cluster
        self.layout: Layout = cluster.layout

    def engine_pids(self) -> dict[str, int]:
        return {"PostgreSQL": self._pid(POSTGRESQL), "Valkey": self._pid(VALKEY)}

    def _pid(self, engine: str) -> int:
        pid: int | None = self._cluster.pid(engine)
        if pid is None:
            raise BenchmarkError(f"{engine} does not run; see {self.layout.log(engine)}")
        return pid

    def connect(self, database: str = DATABASE) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.layout.run),
            port=DATABASE_PORT,
            user=DATABASE_USER,
            dbname=database,
            autocommit=True,
        )

    def make_ours(self) -> None:
        """The database and the broker of this project as after its first start: all empty."""
        self.make_database(DATABASE, template=_EMPTY)
        self.empty_redis(0, 1)

    def migrate(self) -> None:
        """Make the tables once; `make_ours` copies them."""
        self.make_database(DATABASE)
        log = self.directory / "migrate.log"
        run([sys.executable, str(CHECKOUT / "manage.py"), "migrate"], log=log, cwd=CHECKOUT)
        self.make_database(_EMPTY, template=DATABASE)

    def make_database(self, name: str, *, template: str = "template1") -> None:
        with self.connect("postgres") as connection:
            for statement in (
                "DROP DATABASE IF EXISTS {} WITH (FORCE)",
                "CREATE DATABASE {} TEMPLATE {}",
            ):
                connection.execute(
                    sql.SQL(statement).format(sql.Identifier(name), sql.Identifier(template))
                )

    def empty_redis(self, *numbers: int) -> None:
        for number in numbers:
            with redis.Redis(unix_socket_path=str(self.layout.valkey_socket), db=number) as client:
                client.flushdb()

    def checkpoint(self) -> None:
        """Write out what loading left in memory, so that it is not part of the measurement."""
        with self.connect("postgres") as connection:
            connection.execute("CHECKPOINT")


@contextlib.contextmanager
def open_place(directory: Path, *, again: bool = False) -> Iterator[Place]:
    """Engines below `directory`, for this process alone, and this process's environment for them.
    With `again`, with the databases that were left there.

    Two benchmarks at once would drop each other's databases.
    """
    with Cluster(directory) as cluster:
        _use(directory)
        cluster.start()
        place = Place(directory, cluster)
        if not again:
            place.migrate()
        yield place


def _use(directory: Path) -> None:
    """Make every process that is started from here on use these engines and default settings."""
    for name in [name for name in os.environ if name.startswith(("WEBHOOKS_", "PG"))]:
        del os.environ[name]
    os.environ |= {
        # Empty, not absent: a variable that is there is not read from the .env file.
        **dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), ""),
        "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
        "WEBHOOKS_LOCAL_DIR": str(directory),
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    }


@dataclass
class Receiver:
    """A running `webhooks_project.receiver.recording`."""

    process: subprocess.Popen[bytes]
    ports: list[int]
    log: Path
    arrived: Growing


@contextlib.contextmanager
def receiving(
    log: Path,
    *,
    id_pattern: str | None = None,
    ports: int = 1,
    delay: float = 0.0,
    silent: bool = False,
) -> Iterator[Receiver]:
    """A receiver that writes `log`; see `webhooks_project.receiver.recording`."""
    log.touch()
    options = ["--ports", str(ports), "--delay", str(delay), *(["--silent"] if silent else [])]
    if id_pattern is not None:
        options += ["--id", id_pattern]
    process = subprocess.Popen(
        [sys.executable, "-m", "webhooks_project.receiver.recording", str(log), *options],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        numbers = process.stdout.readline().split()
        if not numbers:
            raise BenchmarkError("the receiver did not start; what it said is above")
        yield Receiver(process, [int(number) for number in numbers], log, Growing(log))
