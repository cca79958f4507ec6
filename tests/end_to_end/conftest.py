"""Real worker processes on the tests' own database and broker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings
from django.db import connection

from tests.conftest import empty_redis
from webhooks_project.child import as_child
from webhooks_project.programs import CELERY

ROOT = Path(__file__).resolve().parents[2]
# Everything a test may wait for has happened long before; only a failure waits this long.
TIMEOUT = 60.0


def eventually(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> None:
    """Wait until `condition` holds; fail with `what` was waited for."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(0.02)  # the pace of looking, not a wait for something to be over


class Workers:
    """Starts Celery processes like those of a real installation, and ends what it started."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._directory = directory
        self._environment = environment
        self._started: list[tuple[subprocess.Popen[bytes], Path]] = []

    def worker(
        self,
        queues: str = "deliver,recover,maintenance",
        *,
        pool: str = "threads",
        **variables: str,
    ) -> Any:
        """A worker process, ready. `variables` are settings without their prefix."""
        return self._start(
            [
                "worker",
                "--pool",
                pool,
                "--concurrency",
                "32",
                "--queues",
                queues,
                "--without-gossip",
                "--without-mingle",
                "-n",
                f"w{len(self._started)}@test",
            ],
            variables,
        )

    def beat(self, **variables: str) -> Any:
        return self._start(["beat", "--pidfile="], variables)

    def _start(self, arguments: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        number = len(self._started)
        ready = self._directory / f"ready-{number}"
        log = self._directory / f"log-{number}"
        environment = {
            **self._environment,
            **{f"WEBHOOKS_{name.upper()}": value for name, value in variables.items()},
            "WEBHOOKS_READY_FILE": str(ready),
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                as_child([*CELERY, *arguments], signal.SIGKILL),
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._started.append((process, log))
        eventually(
            lambda: ready.exists() or process.poll() is not None, f"{arguments[0]} being ready"
        )
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """As if the power went: nothing is finished, nothing handed back."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)

    def end_all(self) -> None:
        for process, _ in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process, _ in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill(process)

    def logs(self) -> str:
        return "\n".join(log.read_text(errors="replace") for _, log in self._started)


@pytest.fixture
def broker(settings: Any, transactional_db: None) -> Iterator[redis.Redis]:
    """A client of the broker's own database, which is empty, as is that of the wake-ups."""
    from deliveries.waking import wakeups
    from webhooks_project.celery import app

    client = empty_redis()
    wakeups.redis_outage._until = wakeups.broker_outage._until = 0.0
    yield client
    empty_redis().close()
    client.close()
    app.amqp._producer_pool = None


@pytest.fixture
def environment(broker: redis.Redis, configure: Callable[..., None]) -> dict[str, str]:
    """What makes a process of its own use the test's database and broker, and quick retries."""
    import ipaddress

    configure(
        allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),), quick_retries=(0.1, 0.2, 0.4)
    )
    connection.ensure_connection()
    name = connection.settings_dict["NAME"]
    host = connection.settings_dict["HOST"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WEBHOOKS_")}
    return {
        **kept,
        "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
        "WEBHOOKS_ENV_FILE": "",
        "DATABASE_URL": f"postgresql://postgres@/{name}?host={host}",
        "REDIS_URL": settings.REDIS_URL,
        "CELERY_BROKER_URL": settings.CELERY_BROKER_URL,
        "SECRET_KEY": settings.SECRET_KEY,
        "WEBHOOKS_SECRET_KEYS": ",".join(settings.WEBHOOKS.secret_keys),
        "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
        "WEBHOOKS_QUICK_RETRIES": "0.1,0.2,0.4",
        "WEBHOOKS_SWEEP_INTERVAL": "1",
    }


@pytest.fixture
def workers(environment: dict[str, str], tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path, environment)
    yield started
    started.end_all()
