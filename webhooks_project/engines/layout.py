"""Where everything of a pair of embedded engines lives, computed and nothing touched.

<directory>/                 0700; `.local/` of the checkout, or WEBHOOKS_LOCAL_DIR
    engines.users            lock: shared by every process that uses the engines
    start.lock               lock: one process at a time starts a guardian
    guard.lock               lock: held by the guardian; holds the names of what is ready
    engines.wanted           names of the engines that the users asked for
    engines.log              what the guardian did, and why
    postgresql/              the data directory
    postgresql.lock          lock: held by the server's processes while one is alive
    postgresql.log
    valkey/ valkey.lock valkey.log
    run/                     the sockets, unless the path is too long for one
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

POSTGRESQL = "postgresql"
VALKEY = "valkey"
ENGINES = (POSTGRESQL, VALKEY)

# What a guardian says: into its lock file, followed by the engines that are up,
# and to the process that started it.
READY = "ready"
ANOTHER = "another guardian is at work"

DATABASE = "webhooks"
DATABASE_USER = "postgres"
DATABASE_PORT = 5432  # a part of the socket's name; no TCP port is opened

# A socket's path may have 107 bytes on Linux and 103 on macOS. What PostgreSQL
# adds, "/pg/.s.PGSQL.5432.lock", is 22.
SOCKET_DIRECTORY_BYTES = 80

# libpq splits a host at commas, PostgreSQL splits its socket directories at
# commas and blanks, and a URL has its own ideas about most other characters.
_PLAIN = re.compile(r"[A-Za-z0-9/._+-]+")


def socket_directory(directory: Path, uid: int) -> Path:
    """`<directory>/run` when every client can write that down, else a short one below /tmp.

    The same for every process of one user, whatever its environment, so that
    addresses can be told without asking a running engine.
    """
    beside = directory / "run"
    if len(os.fsencode(beside)) <= SOCKET_DIRECTORY_BYTES and _PLAIN.fullmatch(str(beside)):
        return beside
    return Path(f"/tmp/webhooks-{uid}-{fingerprint(directory)}")  # noqa: S108 - owner checked


def fingerprint(directory: Path) -> str:
    """Ten hexadecimal digits that stand for this directory."""
    return hashlib.sha256(os.fsencode(directory)).hexdigest()[:10]


@dataclass(frozen=True)
class Layout:
    """The paths of one pair of engines. Made by `Layout.of`."""

    directory: Path
    run: Path

    @classmethod
    def of(cls, directory: str | Path) -> Layout:
        """The layout below `directory`; symbolic links are followed, nothing need exist."""
        resolved = Path(os.path.realpath(directory))
        return cls(resolved, socket_directory(resolved, os.geteuid()))

    @property
    def users(self) -> Path:
        return self.directory / "engines.users"

    @property
    def start_lock(self) -> Path:
        return self.directory / "start.lock"

    @property
    def guard_lock(self) -> Path:
        return self.directory / "guard.lock"

    @property
    def wanted(self) -> Path:
        return self.directory / "engines.wanted"

    @property
    def log(self) -> Path:
        return self.directory / "engines.log"

    def data(self, engine: str) -> Path:
        return self.directory / engine

    def engine_lock(self, engine: str) -> Path:
        return self.directory / f"{engine}.lock"

    def engine_log(self, engine: str) -> Path:
        return self.directory / f"{engine}.log"

    @property
    def postgresql_host(self) -> Path:
        """What libpq takes as `host`: the directory of the socket."""
        return self.run / "pg"

    @property
    def valkey_socket(self) -> Path:
        return self.run / "valkey.sock"

    @property
    def database_url(self) -> str:
        return f"postgresql://{DATABASE_USER}@/{DATABASE}?host={self.postgresql_host}"

    @property
    def redis_url(self) -> str:
        """For redis-py: database 1, so that flags and queues do not mix."""
        return f"unix://{self.valkey_socket}?db=1"

    @property
    def broker_url(self) -> str:
        """For kombu: database 0."""
        return f"redis+socket://{self.valkey_socket}?virtual_host=0"
