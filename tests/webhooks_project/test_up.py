"""`manage.py up`: the whole installation as one process tree."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from tests.webhooks_project.waiting import eventually
from webhooks_project.engines import Cluster
from webhooks_project.engines.cluster import CHECKOUT
from webhooks_project.engines.launch import birth
from webhooks_project.management.commands.up import listen
from webhooks_project.programs import installation, web_url


class Up:
    """A running `manage.py up` with engines and a port of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.cluster = Cluster(directory)
        engines = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), "")
        settings = {
            "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",  # not those of the tests
            "WEBHOOKS_LOCAL_DIR": str(directory),
        }
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--port", "0", "--threads", "8", *arguments],
            cwd=CHECKOUT,
            env=os.environ | engines | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)

    def read_until(self, beginning: str, seconds: float = 60) -> str:
        """The line that begins so; fails with everything that was said if it does not come."""
        deadline = time.monotonic() + seconds
        while True:
            for line in list(self.lines):
                if line.startswith(beginning):
                    return line
            if time.monotonic() > deadline or not self.reader.is_alive():
                pytest.fail("".join(self.lines))
            self.reader.join(0.02)

    def programs(self) -> dict[int, str]:
        """The processes of the tree, engines not counted, by id."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                told = (entry / "environ").read_bytes().split(b"\0")
                if f"WEBHOOKS_LOCAL_DIR={self.cluster.layout.directory}".encode() in told:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
        return {
            pid: command
            for pid, command in found.items()
            if "webhooks_project.engines" not in command and birth(pid)
        }

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(20)
        self.process.stdout.close()
        eventually(lambda: not self.programs(), 40)
        assert self.cluster.wait_until_stopped()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "local")
    yield running
    running.end()


@pytest.mark.end_to_end
def test_up_is_ready_restarts_what_dies_and_ends_with_everything(up):
    ready = up.read_until("ready ")
    url = ready.split()[2]
    assert ready.split()[3:] == ["admin", f"{url}admin/"]
    with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
        assert answer.status == 200
    commands = up.programs()
    assert sum("celery" in command and " worker " in command for command in commands.values()) == 2
    beat = next(pid for pid, command in commands.items() if " beat " in command)

    os.kill(beat, signal.SIGKILL)
    up.read_until("beat    | ended with signal SIGKILL; next start in 1 s")
    eventually(lambda: [p for p, c in up.programs().items() if " beat " in c and p != beat])

    up.process.send_signal(signal.SIGTERM)
    up.process.wait(timeout=15)
    assert up.process.returncode == 0
    assert not up.programs()
    assert up.cluster.wait_until_stopped()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}healthz", timeout=10)


@pytest.mark.end_to_end
def test_up_that_is_killed_leaves_nothing(up):
    up.read_until("ready ")
    up.process.kill()
    eventually(lambda: not up.programs(), 20)
    assert up.cluster.wait_until_stopped()


@pytest.mark.end_to_end
def test_two_at_once_on_one_database_share_the_migrations(up, tmp_path):
    other = Up(tmp_path / "local")
    try:
        assert up.read_until("ready ") != other.read_until("ready ")
    finally:
        other.process.terminate()
        other.process.wait(timeout=20)
        other.reader.join(20)
        other.process.stdout.close()


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"127.0.0.1:{port} is in use by another program"):
            call_command("up", port=port)


def test_a_host_that_is_not_ours_is_said():
    with pytest.raises(CommandError, match="cannot be listened on"):
        listen("192.0.2.1", 0)  # bound, never connected to


@pytest.mark.parametrize(
    "arguments", [["--port", "70000"], ["--port", "http"], ["--workers", "0"], ["--threads", "x"]]
)
def test_a_number_out_of_range_is_refused(arguments):
    with pytest.raises(CommandError, match="is not a"):
        call_command("up", *arguments)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_listener_is_bound_and_can_be_inherited(host):
    with listen(host, 0) as listener:
        assert os.get_inheritable(listener.fileno())
        assert web_url(listener).startswith("http://")
        assert not web_url(listener).endswith(":0/")


def test_several_deliver_workers_have_names_of_their_own(tmp_path):
    with listen("127.0.0.1", 0) as listener:
        programs = installation(listener, tmp_path, workers=3, threads=16)
    names = [program.name for program in programs]
    assert names == ["web", "deliver1", "deliver2", "deliver3", "recover", "beat"]
    queues = [
        program.command[program.command.index("--queues") + 1]
        for program in programs
        if "--queues" in program.command
    ]
    assert queues == ["deliver"] * 3 + ["recover,maintenance"]
