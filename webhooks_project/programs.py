"""The programs that make up a running installation: web, workers, beat."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from django.core.management.base import CommandError

from subscriptions.conf import conf
from webhooks_project.engines import CHECKOUT
from webhooks_project.supervisor import Program

DELIVER_QUEUES = "deliver"
RECOVER_QUEUES = "recover,maintenance"
# How workers and beat are started. Celery's own run of Django's checks, whose result it ignores,
# would load the whole web: 0.15 s and 4 MiB. `deliveries.starting` checks what they must have.
CELERY = [sys.executable, "-m", "celery", "--skip-checks", "-A", "webhooks_project"]

WEB_PROCESSES = 2
WEB_THREADS = 8


def spare_cores() -> int:
    """How many deliver workers this machine has a core for: one core is left for all else."""
    return max(1, (os.cpu_count() or 1) - 1)


def stop_seconds() -> float:
    """How long the programs have to end: a worker waits for its requests, and writes what came."""
    return conf().request_timeout + 5


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that keeps an address for the web, whose processes bind theirs beside it.

    Raises CommandError in words.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CommandError(
            f"--host {host}: {error.strerror}. Give an address of this machine."
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        # A socket that shares its port would be bound beside the web of another `up`.
        with socket.socket(family, kind, protocol) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            alone.listen()
            address = alone.getsockname()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"{host}:{port} is in use by another program; "
                "end that one, or choose another port with --port."
            ) from None
        raise CommandError(f"{host}:{port} cannot be listened on: {error.strerror}.") from None
    return listener


def web(listener: socket.socket) -> Program:
    """The web server, on the address that `listener` keeps for it."""
    host, port = listener.getsockname()[:2]
    return Program(
        name="web",
        command=[
            *(sys.executable, "-m", "webhooks_project.web", host, str(port)),
            *(str(WEB_PROCESSES), str(WEB_THREADS)),
        ],
        ready_url=f"{web_url(listener)}healthz",
        cwd=CHECKOUT,
    )


def web_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - only compared
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def worker(name: str, queues: str, threads: int, ready_directory: Path) -> Program:
    """A Celery worker with a thread for each delivery that may wait for a receiver."""
    return Program(
        name=name,
        command=[
            *(*CELERY, "worker"),
            *("--pool", "threads", "--concurrency", str(threads)),
            *("--queues", queues, "-n", f"{name}@%h"),
            # What workers tell each other is of no use here, and costs a second at the start.
            *("--without-mingle", "--without-gossip"),
        ],
        env={"WEBHOOKS_READY_FILE": str(ready_directory / name)},
        ready_file=ready_directory / name,
        cwd=CHECKOUT,
    )


def beat(ready_directory: Path) -> Program:
    return Program(
        name="beat",
        command=[
            *(*CELERY, "beat"),
            "--pidfile=",  # a second beat is harmless: the sweep claims its rows
        ],
        env={"WEBHOOKS_READY_FILE": str(ready_directory / "beat")},
        ready_file=ready_directory / "beat",
        cwd=CHECKOUT,
    )


def installation(
    listener: socket.socket,
    ready_directory: Path,
    *,
    workers: int,
    threads: int,
    pass_fds: Sequence[int] = (),
) -> list[Program]:
    """Everything: the web on `listener`, so many deliver workers, one recover worker, beat.

    All of them inherit `pass_fds`.
    """
    names = ["deliver"] if workers == 1 else [f"deliver{n}" for n in range(1, workers + 1)]
    programs = [
        web(listener),
        *(worker(name, DELIVER_QUEUES, threads, ready_directory) for name in names),
        worker("recover", RECOVER_QUEUES, threads, ready_directory),
        beat(ready_directory),
    ]
    return [replace(program, pass_fds=[*program.pass_fds, *pass_fds]) for program in programs]
