"""`manage.py up`: everything that an installation needs, in one terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import OperationalError, connection

from subscriptions.management.base import whole_number
from webhooks_project import engines
from webhooks_project.programs import (
    installation,
    listen,
    spare_cores,
    stop_seconds,
    web_url,
)
from webhooks_project.supervisor import Supervisor

MIGRATION_LOCK = 0x776562686F6F6B73  # "webhooks" in ASCII: a key nobody else uses by chance


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


class Command(BaseCommand):
    help = (
        "Start everything: database and broker (unless configured elsewhere), migrations, web, "
        "workers and beat. A program that dies is started again. Ctrl-C ends it all. Exit codes: "
        "0 ended by Ctrl-C or SIGTERM, 1 it could not start or a program died five times within a "
        "minute, 2 an argument is not valid."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--host", default="127.0.0.1", help="address of the web (%(default)s)")
        parser.add_argument(
            "--port",
            type=whole_number(0, 65535),
            default=8000,
            help="its port; 0: any free one (%(default)s)",
        )
        parser.add_argument(
            "--workers",
            type=whole_number(1, 64),
            default=spare_cores(),
            help="deliver workers (%(default)s: one core is left for the other programs)",
        )
        parser.add_argument(
            "--threads",
            type=whole_number(1, 1024),
            default=128,
            help="threads of each (%(default)s)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if sys.stdout.isatty():  # the programs write into pipes, and cannot know
            os.environ.setdefault("WEBHOOKS_LOG_FORMAT", "console")
        try:
            with (
                engines.embedded() as cluster,
                tempfile.TemporaryDirectory(prefix="webhooks-up-") as directory,
            ):
                # Children of an `up` that was killed have the port until they are gone.
                held = [cluster.hold("programs")] if cluster.engines else []
                with listen(options["host"], options["port"]) as listener:
                    cluster.start()
                    migrate()
                    supervisor = Supervisor(
                        installation(
                            listener,
                            Path(directory),
                            workers=options["workers"],
                            threads=options["threads"],
                            pass_fds=held,
                        ),
                        sys.stdout,
                        on_ready=lambda: self._say_ready(web_url(listener)),
                        revive=cluster.revive,
                        stop_seconds=stop_seconds(),
                    )
                    status = supervisor.run()
        except engines.EngineError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:  # before the supervisor took over
            return
        if status:
            raise CommandError(supervisor.reason, returncode=status)

    def _say_ready(self, url: str) -> None:
        """The last lines of the start: what runs is asked for work, not before."""
        users = get_user_model().objects.filter(is_staff=True, is_active=True)
        with contextlib.closing(connection):
            anybody = users.exists()
        if not anybody:
            self.stdout.write(
                "Nobody can log in to the admin yet; "
                "in another terminal: .venv/bin/python manage.py createsuperuser"
            )
        self.stdout.write(f"ready  web {url}  admin {url}admin/  Ctrl-C ends it")
        self.stdout.flush()
