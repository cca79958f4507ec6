"""Where the embedded engines are: computed, so that settings can be imported and nothing starts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dj_database_url

CHECKOUT = Path(__file__).resolve().parents[2]
BACKEND = "webhooks_project.postgresql"

POSTGRESQL = "postgresql"
VALKEY = "valkey"
ENGINES = (POSTGRESQL, VALKEY)
DATABASE = "webhooks"
DATABASE_USER = "postgres"
DATABASE_PORT = 5432  # a part of the socket's name; no TCP port is opened

NOT_RUNNING = "The database and the broker of this checkout do not run; start them with `make up`."

# A socket's path may have 107 bytes on Linux and 103 on macOS; "/.s.PGSQL.5432.lock" is 19.
SOCKET_DIRECTORY_BYTES = 80
# libpq splits a host at commas, PostgreSQL splits its socket directories at commas and blanks,
# and a URL has its own ideas about most other characters.
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")


@dataclass(frozen=True)
class Layout:
    """Where the engines of one directory keep what. Computed by `of`; nothing need exist."""

    directory: Path
    run: Path
    """The directory of both sockets; for libpq, the host."""

    @classmethod
    def of(cls, directory: str | Path) -> Layout:
        """Symbolic links are followed. The sockets are in `<directory>/run` when every client
        can write that down, else in a short directory below /tmp."""
        resolved = Path(os.path.realpath(directory))
        run = resolved / "run"
        if len(os.fsencode(run)) > SOCKET_DIRECTORY_BYTES or not _PLAIN.fullmatch(str(run)):
            fingerprint = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:10]
            run = Path(f"/tmp/webhooks-{os.geteuid()}-{fingerprint}")  # noqa: S108 - see _own
        return cls(resolved, run)

    def data(self, engine: str) -> Path:
        return self.directory / engine

    def log(self, engine: str) -> Path:
        return self.directory / f"{engine}.log"

    def lock(self, name: str) -> Path:
        return self.directory / f"{name}.lock"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"

    @property
    def database_url(self) -> str:
        return f"postgresql://{DATABASE_USER}@/{DATABASE}?host={self.run}"

    def redis_url(self, database: int = 1) -> str:
        """For redis-py: not the broker's database, so that wake-ups and queues do not mix."""
        return f"unix://{self.valkey_socket}?db={database}"

    def broker_url(self, database: int = 0) -> str:
        """For kombu."""
        return f"redis+socket://{self.valkey_socket}?virtual_host={database}"


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
    return {
        "ENGINE": BACKEND,
        "NAME": DATABASE,
        "USER": DATABASE_USER,
        "PASSWORD": "",
        "HOST": str(Layout.of(local_dir()).run),
        "PORT": "",
    }


def redis_url() -> str:
    return _setting("REDIS_URL") or Layout.of(local_dir()).redis_url()


def broker_url() -> str:
    """`CELERY_BROKER_URL`, else `REDIS_URL`, else the embedded Valkey."""
    return (
        _setting("CELERY_BROKER_URL")
        or _setting("REDIS_URL")
        or Layout.of(local_dir()).broker_url()
    )


def running() -> bool:
    """Does a process keep the embedded engines of this checkout running just now?"""
    try:
        lock = os.open(Layout.of(local_dir()).lock("owner"), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
