"""Processes that end early: a worker that cannot work, and a command nobody listens to."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.end_to_end.conftest import ROOT, eventually
from tests.factories import make_subscription
from webhooks_project.child import as_child

pytestmark = [pytest.mark.end_to_end, pytest.mark.django_db(transaction=True)]

COMMANDS = {
    "worker": ["worker", "--pool", "threads", "--without-gossip", "--without-mingle"],
    "beat": ["beat", "--pidfile="],
}


def test_a_command_whose_reader_has_gone_ends_in_silence(environment: dict[str, str]) -> None:
    make_subscription()
    # As after `subscriptions | head -n 0`.
    with subprocess.Popen(
        [sys.executable, "manage.py", "subscriptions"],
        cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        running.stdout.close()
        running.stdout = None
        assert running.communicate(timeout=60)[1] == ""
    assert running.returncode == 1


def test_a_command_whose_output_finds_no_room_says_so(environment: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "manage.py", "subscriptions", "--json"],
            cwd=ROOT, env=environment, text=True, stdout=full, stderr=subprocess.PIPE,
        )  # fmt: skip
    assert done.stderr.startswith(
        "CommandError: The output cannot be written: No space left on device."
    )
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 1


def test_a_command_says_why_the_database_cannot_be_used(environment: dict[str, str]) -> None:
    away = {"DATABASE_URL": "postgresql://postgres@127.0.0.1:1/away"}
    done = subprocess.run(
        [sys.executable, "manage.py", "subscriptions"],
        cwd=ROOT, env=environment | away, text=True, capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    [said] = done.stderr.splitlines()
    assert said.startswith("CommandError: The database cannot be used: ")
    assert "Connection refused" in said


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("keys", ["another", "none"])
def test_a_worker_that_can_read_no_secret_does_not_start(
    environment: dict[str, str], command: str, keys: str
) -> None:
    make_subscription()
    wrong = Fernet.generate_key().decode() if keys == "another" else ""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "webhooks_project", *COMMANDS[command]],
        cwd=ROOT,
        env={**environment, "WEBHOOKS_SECRET_KEYS": wrong},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "This process does not start:" in done.stderr
    expected = "No signing secret can be decrypted" if wrong else "WEBHOOKS_SECRET_KEYS is empty"
    assert expected in done.stderr
    assert "HINT: " in done.stderr


def test_a_worker_starts_although_the_database_is_away(
    environment: dict[str, str], tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    away = "postgresql://postgres@127.0.0.1:1/away?connect_timeout=1"
    with subprocess.Popen(
        as_child(
            [sys.executable, "-m", "celery", "-A", "webhooks_project", *COMMANDS["worker"]],
            signal.SIGKILL,
        ),
        cwd=ROOT,
        env={**environment, "DATABASE_URL": away, "WEBHOOKS_READY_FILE": str(ready)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        try:
            eventually(lambda: ready.exists() or running.poll() is not None, "the worker")
            assert running.poll() is None
        finally:
            running.kill()
