"""`manage.py demo`: the whole system at work, on engines and receivers of its own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from subscriptions.management.base import whole_number
from webhooks_project import engines
from webhooks_project.management.commands.up import migrate
from webhooks_project.programs import installation, listen, stop_seconds
from webhooks_project.supervisor import Supervisor

# What differs from an installation: retries in tenths of seconds instead of seconds, so that
# the story takes a minute, and receivers on this very machine.
ENVIRONMENT = {
    "WEBHOOKS_QUICK_RETRIES": "0.2,0.4,0.8",
    "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
    "WEBHOOKS_LOG_LEVEL": "WARNING",
}
ENGINES = ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL", "SECRET_KEY")


class Command(BaseCommand):
    help = (
        "Start everything on local engines, publish events to a healthy, a flaky and a dead "
        "receiver, and tell what happens. Then stay up, with the admin, until Ctrl-C."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--once", action="store_true", help="end after the story; exit 0 only if it held"
        )
        parser.add_argument("--json", action="store_true", help="print the figures as JSON")
        parser.add_argument(
            "--port",
            type=whole_number(0, 65535),
            default=8000,
            help="port of the admin (%(default)s, or a free one)",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if os.environ.get("WEBHOOKS_DEMO") != "1":
            self._begin_anew()
        try:
            with engines.embedded() as cluster:
                self._run(cluster, **options)
        except engines.EngineError as error:
            raise CommandError(str(error)) from None
        except KeyboardInterrupt:
            self.stderr.write("\nended")

    def _begin_anew(self) -> None:
        """Run this command again with the demo's own settings, before any are read."""
        directory = engines.local_dir() / "demo"
        directory.mkdir(parents=True, exist_ok=True)
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("WEBHOOKS_") and name not in ENGINES
        }
        # Empty rather than absent: what is absent would be read from `.env`.
        environment |= dict.fromkeys(ENGINES, "")
        environment |= {**ENVIRONMENT, "WEBHOOKS_DEMO": "1", "WEBHOOKS_LOCAL_DIR": str(directory)}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606

    def _run(self, cluster: engines.Cluster, *, once: bool, port: int, **options: Any) -> None:
        from webhooks_project.demo import Story, Teller, make_admin, start_afresh

        directory = engines.local_dir()
        tell = Teller(sys.stderr if options["json"] else sys.stdout)
        tell("starting PostgreSQL and Valkey under " + _short(directory))
        cluster.start()
        migrate()
        start_afresh()
        password = make_admin()
        try:
            listener = listen("127.0.0.1", port)
        except CommandError:
            listener = listen("127.0.0.1", 0)
        log_path = directory / "demo.log"
        with listener, log_path.open("w") as log:
            tell(f"starting web, two workers and beat; their log is {_short(log_path)}")
            supervisor = Supervisor(
                installation(listener, directory, workers=1, threads=128),
                log,
                stop_seconds=stop_seconds(),
            )
            supervisor.start()
            try:
                supervisor.wait_until_ready(60)

                def afterwards(figures: dict[str, Any]) -> None:
                    if options["json"]:
                        self.stdout.write(json.dumps(figures, indent=2))
                    if not figures["held"]:
                        raise CommandError("the story did not hold; see above and the log")
                    if once:
                        return
                    tell("")
                    tell(f"admin  http://127.0.0.1:{listener.getsockname()[1]}/admin/")
                    tell(f"login  admin / {password}")
                    tell("The receivers still listen. Commands see the demo's data with")
                    tell(f"  WEBHOOKS_LOCAL_DIR={_short(directory)}")
                    tell("Ctrl-C ends everything.")
                    supervisor.wait()
                    raise CommandError(supervisor.reason or "the programs have ended")

                Story(tell).run(afterwards)
            except RuntimeError as error:
                raise CommandError(f"{error}; see {log_path}") from None
            finally:
                supervisor.stop()


def _short(path: Path) -> str:
    base = Path(settings.BASE_DIR)
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
