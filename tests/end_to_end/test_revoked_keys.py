"""A key that is revoked, and every process of the web server."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from django.core.management import call_command

from tests.api.calls import key
from tests.end_to_end.conftest import TIMEOUT, eventually
from webhooks_project.child import as_child
from webhooks_project.programs import WEB_PROCESSES, listen, web

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]


class Client:
    """One connection, which stays with the process that took it."""

    def __init__(self, port: int, key_text: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._headers = {"Authorization": f"Bearer {key_text}"}

    def status(self) -> int:
        self._connection.request("GET", "/api/v1/subscriptions", headers=self._headers)
        answer = self._connection.getresponse()
        answer.read()
        return answer.status

    def process(self) -> int:
        """The id of the process at its other end."""
        taken: socket.socket = self._connection.sock
        ours, theirs = taken.getsockname()[1], taken.getpeername()[1]
        [inode] = [
            columns[9]
            for columns in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
            if [int(end.split(":")[1], 16) for end in columns[1:3]] == [theirs, ours]
        ]
        [process] = [
            int(process.name)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and f"socket:[{inode}]" in _open(process)
        ]
        return process

    def close(self) -> None:
        self._connection.close()


def _open(process: Path) -> Iterator[str]:
    # A descriptor may be closed meanwhile, and a process end.
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                yield os.readlink(descriptor)


@pytest.fixture
def port(environment: dict[str, str], tmp_path: Path) -> Iterator[int]:
    """The web server as `up` starts it."""
    with listen("127.0.0.1", 0) as listener:
        program = web(listener)
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(
                as_child(program.command, signal.SIGTERM),
                cwd=program.cwd,
                env=environment | dict(program.env),
                pass_fds=program.pass_fds,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        port = listener.getsockname()[1]

        def is_up() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        eventually(is_up, "the web being up", TIMEOUT)
        yield port
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def test_a_key_that_was_revoked_is_refused_within_a_second_by_every_web_process(port: int) -> None:
    text = key("subscriptions:read")
    by_process: dict[int, Client] = {}

    def every_process_has_answered() -> bool:
        client = Client(port, text)
        assert client.status() == 200
        if (taken := client.process()) in by_process:
            by_process[taken].close()
        by_process[taken] = client
        if len(by_process) < WEB_PROCESSES:
            return False
        # The server may have closed one that was idle for too long: then another is needed.
        for number, kept in list(by_process.items()):
            try:
                assert kept.status() == 200
            except (http.client.HTTPException, OSError):
                del by_process[number]
        return len(by_process) >= WEB_PROCESSES

    eventually(every_process_has_answered, "an answer of each process", TIMEOUT)
    call_command("revoke_api_key", text.split("_")[1], verbosity=0)
    revoked = time.monotonic()
    statuses = {process: client.status() for process, client in by_process.items()}
    assert set(statuses.values()) == {401}, statuses
    assert time.monotonic() - revoked < 1
    for client in by_process.values():
        client.close()
