"""`/healthz` and `/readyz` tell the truth, and tell it soon."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db.migrations.recorder import MigrationRecorder

from deliveries import tasks
from deliveries.monitoring import readiness, sweeps
from deliveries.monitoring.asking import Kept, NoAnswer, ask
from deliveries.waking import wakeups
from tests.conftest import empty_redis
from tests.webhooks_project.waiting import eventually

ROOT = Path(__file__).resolve().parents[3]
# The threads that ask have connections of their own, and see only what is committed.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[redis.Redis]:
    # That a busy machine answers late is not what these tests are about.
    monkeypatch.setattr(readiness, "TIMEOUT", 30.0)
    readiness._kept.forget()
    wakeups.redis_outage.end()
    with empty_redis() as client:
        yield client
    readiness._kept.forget()


def checks(client: Any, status: int) -> dict[str, Any]:
    readiness._kept.forget()
    response = client.get("/readyz")
    assert response.status_code == status, response.content
    found = response.json()
    assert found["status"] == ("ready" if status == 200 else "not ready")
    checks: dict[str, Any] = found["checks"]
    assert set(checks) == {"database", "migrations", "redis", "broker", "sweep"}
    return checks


def wrong(found: dict[str, Any]) -> dict[str, str]:
    return {name: check["problem"] for name, check in found.items() if not check["ok"]}


def test_it_is_ready_once_a_sweep_ran(client: Any, broker: redis.Redis) -> None:
    missing = wrong(checks(client, 503))
    assert list(missing) == ["sweep"], missing
    tasks.sweep()
    found = checks(client, 200)
    assert wrong(found) == {}
    assert 0 <= found["sweep"]["seconds_ago"] < 30


def test_a_sweep_that_is_long_ago_is_missed(
    client: Any, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps.mark_sweep()
    monkeypatch.setattr(sweeps, "SWEEP_IS_MISSED", -20.0)
    found = wrong(checks(client, 503))
    problem = found["sweep"]
    assert re.match(r"the last one ended \d+ s ago: look at beat", problem), found


def test_a_sweep_that_failed_is_none(
    client: Any, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from django.db import OperationalError

    def fail() -> None:
        raise OperationalError("away")

    monkeypatch.setattr(tasks, "sweep_once", fail)
    tasks.sweep()
    assert sweeps.seconds_since_sweep() is None


def test_a_sweep_goes_on_without_redis(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = redis.Redis(port=1, socket_connect_timeout=0.2)
    monkeypatch.setattr(sweeps, "client", lambda: dead)
    tasks.sweep()
    with pytest.raises(redis.RedisError):
        sweeps.seconds_since_sweep()
    wakeups.redis_outage.end()


def test_a_migration_that_is_not_applied_is_missing(client: Any, broker: redis.Redis) -> None:
    sweeps.mark_sweep()
    rows = MigrationRecorder.Migration.objects.filter(app="api")
    kept = list(rows)
    rows.delete()
    try:
        assert wrong(checks(client, 503)) == {
            "migrations": f"{len(kept)} not applied: run `manage.py migrate`"
        }
    finally:
        MigrationRecorder.Migration.objects.bulk_create(kept)
    assert wrong(checks(client, 200)) == {}


def test_a_question_without_an_answer_is_waited_for_briefly_and_asked_once() -> None:
    let_go = threading.Event()
    asked: list[None] = []

    def hang() -> str:
        asked.append(None)
        let_go.wait(30)
        return "at last"

    for _ in range(3):
        found = ask({"hang": hang, "well": lambda: "well"}, 0.5)
        assert isinstance(found["hang"], NoAnswer)
        assert found["well"] == "well"
    assert len(asked) == 1
    let_go.set()
    eventually(lambda: ask({"hang": hang}, 1.0)["hang"] == "at last")


def test_two_questions_of_one_name_get_an_answer_each() -> None:
    """`/metrics` and `/readyz` both have one that is called `redis`."""
    let_go = threading.Event()
    found = ask({"redis": lambda: let_go.wait(30)}, 0.1)
    assert isinstance(found["redis"], NoAnswer)
    assert ask({"redis": lambda: "well"}, 10) == {"redis": "well"}
    let_go.set()


def test_what_is_kept_is_made_once_however_many_ask(at_once: Any) -> None:
    made: list[int] = []

    def make() -> int:
        made.append(0)
        return len(made)

    kept = Kept(make, 60)
    assert at_once(lambda _: kept.get(), 20) == [1] * 20
    kept.forget()
    assert kept.get() == 2


ASK = """
import time, django
django.setup()
from django.test import Client
client = Client(SERVER_NAME="localhost")
for page in ("/healthz", "/readyz"):
    began = time.monotonic()
    answer = client.get(page)
    print(page, answer.status_code, round(time.monotonic() - began, 2), answer.content.decode())
"""


def test_servers_that_never_answer_are_reported_within_two_seconds_without_their_secrets() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("WEBHOOKS_")},
            "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
            "WEBHOOKS_ENV_FILE": "",
            "WEBHOOKS_HTTPS": "0",
            "SECRET_KEY": "no secret of anybody's",
            "DATABASE_URL": f"postgresql://someone:hush@127.0.0.1:{port}/private",
            "REDIS_URL": f"redis://:hush@127.0.0.1:{port}/0",
            "CELERY_BROKER_URL": f"amqp://someone:hush@127.0.0.1:{port}//",
        }
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ASK],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    alive, ready = done.stdout.splitlines()
    assert alive.startswith("/healthz 200 ")
    page, status, seconds, _ = ready.split(" ", 3)
    assert (page, status) == ("/readyz", "503")
    assert float(seconds) < 3
    assert ready.count('"ok": false') == 5
    for secret in ("hush", "someone", "private", "127.0.0.1", str(port)):
        assert secret not in ready.removeprefix("/readyz")
