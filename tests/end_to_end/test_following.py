"""`deliveries --follow` beside a database that goes away and comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from tests.webhooks_project.waiting import eventually
from webhooks_project.engines import CHECKOUT, POSTGRESQL, Cluster

MANAGE = [sys.executable, str(CHECKOUT / "manage.py")]


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[Cluster]:
    """One of the test's own."""
    with Cluster(tmp_path / "local", [POSTGRESQL]) as cluster:
        cluster.start()
        yield cluster


@pytest.fixture
def environment(postgresql: Cluster) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WEBHOOKS_")}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
        "WEBHOOKS_ENV_FILE": "",
        "DATABASE_URL": postgresql.layout.database_url,
        "REDIS_URL": settings.REDIS_URL,
        "CELERY_BROKER_URL": settings.CELERY_BROKER_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "WEBHOOKS_SECRET_KEYS": ",".join(settings.WEBHOOKS.secret_keys),
        "PYTHONUNBUFFERED": "1",
    }


def test_a_live_tail_says_that_the_database_is_away_and_goes_on_when_it_is_back(
    postgresql: Cluster, environment: dict[str, str], tmp_path: Path
) -> None:
    def manage(*words: str) -> None:
        subprocess.run([*MANAGE, *words], env=environment, check=True, capture_output=True)

    manage("migrate", "--verbosity", "0")
    output, errors = tmp_path / "output", tmp_path / "errors"
    with output.open("w") as out, errors.open("w") as err:
        tail = subprocess.Popen(
            [*MANAGE, "deliveries", "--follow", "--json"], env=environment, stdout=out, stderr=err
        )

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in output.read_text().splitlines()]

    def entries() -> list[tuple[str, str]]:
        return [(one["what"], one["subscription"]) for one in said()]

    def add(name: str) -> None:
        manage("add_subscription", name, f"https://{name}.example.com/", "--pattern", name)

    try:
        numbers = iter(range(100))

        def follows() -> bool:
            # It tells what comes after its beginning.
            add(f"first-{next(numbers)}")
            return bool(said())

        eventually(follows, 60)
        os.kill(postgresql.pid(POSTGRESQL) or 0, signal.SIGINT)
        eventually(lambda: "The database is away: " in errors.read_text(), 60)
        eventually(lambda: postgresql.pid(POSTGRESQL) is None, 60)
        postgresql.start()
        add("second")
        eventually(lambda: "The database is back" in errors.read_text(), 60)
        eventually(lambda: ("created", "second") in entries(), 60)
        tail.send_signal(signal.SIGINT)
        assert tail.wait(30) == 0
        # Once each, among what the pool of connections logs.
        told = [line[:20] for line in errors.read_text().splitlines() if line.startswith("The ")]
        assert told == ["The database is away", "The database is back"]
    finally:
        tail.kill()
        tail.wait()
