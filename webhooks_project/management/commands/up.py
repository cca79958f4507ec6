"""`manage.py up`: everything that an installation needs, in one terminal."""

from __future__ import annotations

import errno
import socket
import sys
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection

from webhooks_project.programs import installation, web_url
from webhooks_project.supervisor import Supervisor

MIGRATION_LOCK = 0x776562686F6F6B73  # "webhooks" in ASCII: a key nobody else uses by chance


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket, inheritable by the web processes. Raises CommandError in words."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise CommandError(
            f"--host {host}: {error.strerror}. Give an address of this machine."
        ) from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CommandError(
                f"{host}:{port} is in use by another program; "
                "end that one, or choose another port with --port."
            ) from None
        raise CommandError(f"{host}:{port} cannot be listened on: {error.strerror}.") from None
    listener.set_inheritable(True)
    return listener


def migrate() -> None:
    """Bring the database up to date; several at once take turns."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [MIGRATION_LOCK])
            try:
                call_command("migrate", interactive=False, verbosity=0)
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [MIGRATION_LOCK])
    except OperationalError as error:
        raise CommandError(f"The database cannot be used: {error}") from error
    finally:
        connection.close()
        connection.close_pool()  # type: ignore[attr-defined]


def _count(most: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to {most}")
        return int(text)

    return parse


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise ArgumentTypeError(f"{text!r} is not a port: 1 to 65535, or 0 for a free one")
    return int(text)


class Command(BaseCommand):
    help = (
        "Start everything: database and broker (unless configured elsewhere), migrations, web, "
        "workers and beat. Ctrl-C ends it all."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address of the web (%(default)s)")
        parser.add_argument(
            "--port", type=_port, default=8000, help="its port; 0: any free one (%(default)s)"
        )
        parser.add_argument(
            "--workers", type=_count(64), default=1, help="deliver workers (%(default)s)"
        )
        parser.add_argument(
            "--threads", type=_count(1024), default=128, help="threads of each (%(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        listener = listen(options["host"], options["port"])
        try:
            migrate()
            with tempfile.TemporaryDirectory(prefix="webhooks-up-") as directory:
                programs = installation(
                    listener,
                    Path(directory),
                    workers=options["workers"],
                    threads=options["threads"],
                )
                url = web_url(listener)

                def say_ready() -> None:
                    self.stdout.write(f"ready  web {url}  admin {url}admin/")
                    self.stdout.flush()

                supervisor = Supervisor(programs, sys.stdout, on_ready=say_ready)
                status = supervisor.run()
        except KeyboardInterrupt:  # before the supervisor took over
            return
        finally:
            listener.close()
        if status:
            raise CommandError(supervisor.reason, returncode=status)
