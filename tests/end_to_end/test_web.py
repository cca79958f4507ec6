"""The web server with real connections: how it ends, what it passes on, what it refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from tests.api.calls import key
from tests.end_to_end.conftest import eventually
from tests.webhooks_project.waiting import alive
from webhooks_project.child import as_child
from webhooks_project.programs import listen, web

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]


class Web:
    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        program = web(self._listener)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                as_child(program.command, signal.SIGKILL),
                env=environment,
                cwd=program.cwd,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        eventually(lambda: self.healthy() or self.process.poll() is not None, "the web answering")
        assert self.process.poll() is None, log.read_text()

    def healthy(self) -> bool:
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """A request on a connection of its own, so that any process may have it."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            client.request("GET", path, headers=headers)
            answer = client.getresponse()
            return answer.status, answer.read()
        finally:
            client.close()

    def raw(self, text: bytes) -> bytes:
        """What comes back, until the server is silent for a while or closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as client:
            client.sendall(text)
            return client.recv(65536)

    def processes(self) -> list[int]:
        """Those that serve."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self._listener.close()


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Web]]:
    started: list[Web] = []

    def one(**variables: str) -> Web:
        given = {"DJANGO_SETTINGS_MODULE": "tests.end_to_end.web_settings"}
        started.append(Web(environment | given | variables, tmp_path / "web.log"))
        return started[-1]

    yield one
    for running in started:
        running.end()


def test_what_has_begun_is_answered_when_the_web_is_told_to_end(
    start: Callable[..., Web], tmp_path: Path
) -> None:
    running = start()
    # One that is still being loaded would end later than the ten seconds that a request has.
    served: set[bytes] = set()
    eventually(lambda: served.add(running.get("/pid")[1]) or len(served) == 2, "both serving")
    flag = tmp_path / "flag"
    answers: list[tuple[int, Any]] = []
    asking = threading.Thread(target=lambda: answers.append(running.get(f"/slow?until={flag}")))
    asking.start()
    eventually(flag.with_suffix(".begun").exists, "the request having begun")
    running.process.terminate()

    eventually(lambda: len(running.processes()) == 1, "the idle process having ended")
    assert not answers
    flag.touch()
    asking.join(30)
    assert answers == [(200, b"done")]
    assert running.process.wait(30) == 0


def test_a_process_that_dies_is_replaced_and_all_go_with_the_first(
    start: Callable[..., Web],
) -> None:
    running = start()
    before = running.processes()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    eventually(
        lambda: len(running.processes()) == 2 and before[0] not in running.processes(),
        "another process",
    )
    children = running.processes()
    running.process.kill()
    running.process.wait(30)
    eventually(lambda: not any(map(alive, children)), "all processes being gone")


def test_the_environment_of_the_process_is_no_part_of_a_request(start: Callable[..., Web]) -> None:
    running = start(HTTP_AUTHORIZATION="Bearer stolen", CONTENT_LENGTH="5", SERVER_NAME="elsewhere")
    meta = json.loads(running.get("/meta", Accept="text/plain")[1])
    assert meta["HTTP_ACCEPT"] == "text/plain"
    assert meta["REQUEST_METHOD"] == "GET"
    assert "HTTP_AUTHORIZATION" not in meta
    assert "DATABASE_URL" not in meta
    assert meta.get("CONTENT_LENGTH", "") != "5"


def test_connections_that_the_database_closed_are_noticed_by_nobody(
    start: Callable[..., Web],
) -> None:
    running = start()
    header = {"Authorization": f"Bearer {key('deliveries:read')}"}
    for _ in range(3):
        assert {running.get("/api/v1/things", **header)[0] for _ in range(30)} == {200}
        assert {running.get("/healthz")[0] for _ in range(30)} == {200}
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


def test_a_large_body_is_refused_before_it_is_sent(start: Callable[..., Web]) -> None:
    running = start(WEBHOOKS_API_MAX_BODY_BYTES="1024")
    head = (
        "POST /api/v1/things HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key('events:write')}\r\n"
    )
    for rest, status in (
        ("Content-Length: 100000000\r\n\r\n" + "{" * 100, 413),
        ("Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n", 413),
        ("Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 411),
    ):
        answer = running.raw((head + rest).encode())
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
        assert b"application/problem+json" in answer


def test_head_is_get_without_the_body(start: Callable[..., Web]) -> None:
    running = start()
    answer = running.raw(b"HEAD /api/v1/open HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length: 13\r\n" in answer.lower()
