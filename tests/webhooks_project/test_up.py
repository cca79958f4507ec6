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

from tests.webhooks_project.waiting import alive, eventually
from webhooks_project.engines import CHECKOUT, ENGINES
from webhooks_project.programs import installation, listen, stop_seconds, web_url


class Up:
    """A running `manage.py up` with engines and a port of its own."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        engines = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), "")
        settings = {
            "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",  # not those of the tests
            "WEBHOOKS_LOCAL_DIR": str(directory),
        }
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "up", "--threads", "8", *arguments],
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
        """The processes of the tree, without the engines (which inherit nothing), by id."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                told = (entry / "environ").read_bytes().split(b"\0")
                if f"WEBHOOKS_LOCAL_DIR={self.directory}".encode() in told:
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except (OSError, ValueError):
                continue
        return {pid: command for pid, command in found.items() if alive(pid)}

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join(20)
        self.process.stdout.close()
        eventually(lambda: not self.programs(), 40)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "local", "--port", "0", "--workers", "1")
    yield running
    running.end()


@pytest.mark.end_to_end
def test_up_is_ready_alone_restarts_what_dies_and_ends_with_everything(up, tmp_path):
    ready = up.read_until("ready ")
    url = ready.split()[2]
    assert ready == f"ready  web {url}  admin {url}admin/  Ctrl-C ends it\n"
    assert "manage.py createsuperuser" in up.lines[up.lines.index(ready) - 1]
    assert engine_pids(up)
    with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
        assert answer.status == 200
    commands = up.programs()
    assert sum("celery" in command and " worker " in command for command in commands.values()) == 2

    other = Up(tmp_path / "local", "--port", "0")
    assert other.process.wait(30) == 1
    other.reader.join(20)
    assert f"in use by process {up.process.pid}" in "".join(other.lines)
    assert "Traceback" not in "".join(other.lines)
    other.process.stdout.close()

    beat = next(pid for pid, command in commands.items() if " beat " in command)
    engine = min(engine_pids(up))
    for victim in (beat, engine):
        os.kill(victim, signal.SIGKILL)
    up.read_until("beat    | ended with signal SIGKILL; next start in 1 s")
    up.read_until("engines | ")
    eventually(lambda: [p for p, c in up.programs().items() if " beat " in c and p != beat])
    eventually(lambda: len(engine_pids(up)) == 2 and engine not in engine_pids(up))

    up.process.send_signal(signal.SIGTERM)
    up.process.wait(timeout=15)
    assert up.process.returncode == 0
    assert not up.programs()
    assert not engine_pids(up)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}healthz", timeout=10)


@pytest.mark.end_to_end
def test_up_that_is_killed_leaves_nothing_that_stops_the_next_one(up, tmp_path):
    url = up.read_until("ready ").split()[2]
    engines, programs = engine_pids(up), set(up.programs())
    up.process.kill()
    following = Up(tmp_path / "local", "--port", url.rstrip("/").rpartition(":")[2])
    try:
        assert following.read_until("ready ").split()[2] == url
        assert not programs & set(up.programs())
        assert not engines & engine_pids(up)
    finally:
        following.end()


def engine_pids(up: Up) -> set[int]:
    """The processes that hold the locks of the engines."""
    locks = [up.directory / f"{name}.lock" for name in ENGINES]
    return {pid for lock in locks if (pid := int(lock.read_text() or 0)) and alive(pid)}


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBHOOKS_LOCAL_DIR", str(tmp_path / "local"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"127.0.0.1:{port} is in use by another program"):
            call_command("up", port=port)
    assert not (tmp_path / "local" / "postgresql").exists()


def test_a_host_that_is_not_ours_is_said():
    with pytest.raises(CommandError, match="cannot be listened on"):
        listen("192.0.2.1", 0)  # bound, never connected to


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "70000"],
        ["up", "--port", "http"],
        ["up", "--port", "²"],
        ["up", "--workers", "0"],
        ["up", "--threads", "x"],
        ["demo", "--port", "99999"],
    ],
)
def test_a_number_out_of_range_is_refused(arguments):
    with pytest.raises(CommandError, match="is not a"):
        call_command(*arguments)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_is_kept_for_the_web_and_for_nobody_else(host):
    with listen(host, 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(CommandError, match=f"{port} is in use by another program"):
            listen(host, port)
        assert web_url(listener).startswith("http://")
        assert not web_url(listener).endswith(":0/")


def test_a_worker_has_longer_to_end_than_a_request(configure):
    for seconds in (10, 300):
        configure(request_timeout=seconds)
        assert stop_seconds() > seconds + 2, "so long a worker waits for what is in flight"


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
