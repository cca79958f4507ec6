"""The two sides of the comparison: how each is installed, loaded and started."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import run

from webhooks_project.engines.layout import DATABASE, DATABASE_USER, Layout
from webhooks_project.programs import DELIVER_QUEUES, worker

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent
PEER = HERE / "peer"
PEER_PACKAGE = "django-webhook2"
PEER_DATABASE = "peer"
PEER_REDIS_DATABASE = 2
PEER_PROCESSES = 2
# What `manage.py up` gives each of its workers.
THREADS = 128


@dataclass(frozen=True)
class Side:
    """One way to deliver webhooks, ready to be measured."""

    name: str
    load: Sequence[str]
    """Makes tables and backlog; EVENTS SUBSCRIPTIONS PORT EXPECTED are added."""
    worker: Sequence[str]
    env: Mapping[str, str]
    cwd: Path
    database: str
    redis_databases: Sequence[int]
    id_pattern: str
    """Where the receiver finds the id of the event in a request."""
    unfinished: str
    """SQL: how many deliveries are not recorded as delivered."""


def ours(local: Path) -> Side:
    """This project, with the worker that `manage.py up` starts, on the engines below `local`."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("WEBHOOKS_", "PG"))
    }
    environment |= {
        # Empty, not absent: a variable that is there is not read from the .env file.
        **dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), ""),
        "WEBHOOKS_LOCAL_DIR": str(local),
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    }
    return Side(
        name="this project",
        load=[sys.executable, str(HERE / "load.py")],
        worker=worker("deliver", DELIVER_QUEUES, THREADS, local).command,
        env=environment,
        cwd=CHECKOUT,
        database=DATABASE,
        redis_databases=[0, 1],
        id_pattern=r"\r\nwebhook-id: ([^\r]+)",
        unfinished="SELECT count(*) FROM deliveries_delivery WHERE status <> 'succeeded'",
    )


def peer(local: Path, layout: Layout) -> Side:
    """The reference package as it comes, from an environment of its own below `local`.

    Makes that environment if it is not there. Raises BenchmarkError if that fails.
    """
    python = _peer_environment(local / "peer-venv", local / "peer-install.log")
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    return Side(
        name=f"{PEER_PACKAGE} {_peer_version()}",
        load=[str(python), str(PEER / "load.py")],
        worker=[
            *(str(python), "-m", "celery", "-A", "app", "worker"),
            *("--concurrency", str(PEER_PROCESSES)),
        ],
        env={name: os.environ[name] for name in kept if name in os.environ}
        | {
            "PEER_DATABASE": PEER_DATABASE,
            "PEER_DATABASE_USER": DATABASE_USER,
            "PEER_DATABASE_HOST": str(layout.postgresql_host),
            "PEER_BROKER_URL": (
                f"redis+socket://{layout.valkey_socket}?virtual_host={PEER_REDIS_DATABASE}"
            ),
        },
        cwd=PEER,
        database=PEER_DATABASE,
        redis_databases=[PEER_REDIS_DATABASE],
        id_pattern=r'"event_id": "([^"]+)"',
        unfinished="SELECT count(*) FROM django_webhook_webhookevent WHERE status <> 'SUCCESS'",
    )


def _peer_version() -> str:
    for line in (PEER / "requirements.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if name == PEER_PACKAGE:
            return version
    raise ValueError(f"benchmarks/peer/requirements.txt does not pin {PEER_PACKAGE}")


def _peer_environment(place: Path, log: Path) -> Path:
    """The interpreter of the peer's environment. A stamp, written last, says that it is whole."""
    python = place / "bin" / "python"
    stamp = place / ".installed"
    requirements = PEER / "requirements.txt"
    wanted = "\n".join(
        [
            *(sys.version, str(place)),
            requirements.read_text(),
            (CHECKOUT / "constraints.txt").read_text(),
        ]
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"setting up {place}; this takes a minute, once", file=sys.stderr, flush=True)
    run([sys.executable, "-m", "venv", "--clear", str(place)], log=log)
    install = ("install", "--quiet", "--disable-pip-version-check", "-r", str(requirements))
    run([str(python), "-m", "pip", *install], log=log)
    stamp.write_text(wanted)
    return python
