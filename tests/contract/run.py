"""Sends thousands of generated requests to the running API, and says whether it kept to its file.

    python -m tests.contract.run [--seconds N] [schemathesis options]

Engines of its own, in `.local/contract`; the web server that `manage.py up` starts, with
`tests.contract.settings`; keys of all scopes, and something to find behind each path. Schemathesis
makes requests from the OpenAPI file that the server gives, valid and invalid ones and chains of
them, and checks every answer against it with all of its checks. Ends with its exit code.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from webhooks_project.engines import Cluster, Layout
from webhooks_project.keys import local_keys

ROOT = Path(__file__).resolve().parents[2]
DIRECTORY = ROOT / ".local" / "contract"
CONFIG = Path(__file__).with_name("schemathesis.toml")
START_SECONDS = 60.0
# So many pairs of a subscription and an event are there from the start.
FOUND = 20


def main() -> int:
    parser = argparse.ArgumentParser(description="Generated requests against the running API.")
    parser.add_argument("--seconds", type=int, default=120, help="how long, at most")
    chosen, options = parser.parse_known_args()
    layout = Layout.of(DIRECTORY)
    os.environ.update(
        local_keys(),
        DATABASE_URL=layout.database_url,
        REDIS_URL=layout.redis_url(),
        CELERY_BROKER_URL=layout.broker_url(),
        DJANGO_SETTINGS_MODULE="tests.contract.settings",
        WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8",
        WEBHOOKS_REQUEST_TIMEOUT="1",
    )
    with Cluster(layout.directory) as cluster:
        cluster.start()
        subprocess.run(
            [sys.executable, "manage.py", "migrate", "--verbosity", "0"], cwd=ROOT, check=True
        )
        key = prepare()
        from webhooks_project.programs import listen

        with listen("127.0.0.1", 0) as listener:
            return run(listener, key, chosen.seconds, options)


def prepare() -> str:
    """A key, and rows for it to find."""
    import django

    django.setup()
    from django.db import connection

    from api.keys import create_key
    from api.models import SCOPES, ApiKey
    from deliveries import publish
    from subscriptions.models import Subscription, create_subscription

    ApiKey.objects.all().delete()
    Subscription.objects.all().delete()
    for number in range(FOUND):
        create_subscription(
            name=f"found {number}", url="http://127.0.0.99:9/", topic_patterns=["order.*"]
        )
        publish("order.paid", {"number": number})
    _, text = create_key("contract", SCOPES, all_tenants=True)
    connection.close()
    return text


def run(listener: socket.socket, key: str, seconds: int, options: list[str]) -> int:
    from webhooks_project import programs
    from webhooks_project.supervisor import Supervisor

    log = DIRECTORY / "web.log"
    with log.open("w") as output:
        supervisor = Supervisor([programs.web(listener)], output, stop_seconds=20)
        supervisor.start()
        try:
            supervisor.wait_until_ready(START_SECONDS)
            with tempfile.TemporaryDirectory() as cache:
                return subprocess.run(
                    [
                        *(
                            Path(sys.executable).with_name("schemathesis"),
                            "--config-file",
                            CONFIG,
                            "run",
                        ),
                        f"{programs.web_url(listener)}api/openapi.json",
                        *("--header", f"Authorization: Bearer {key}"),
                        *("--checks", "all", "--max-time", str(seconds)),
                        *("--request-timeout", "10", "--warnings", "off"),
                        *options,
                    ],
                    cwd=cache,
                ).returncode
        finally:
            supervisor.stop()
            errors = [line for line in log.read_text().splitlines() if "Unexpected error" in line]
            print(*errors[:20], f"The server's log: {log}", sep="\n")


if __name__ == "__main__":
    sys.exit(main())
