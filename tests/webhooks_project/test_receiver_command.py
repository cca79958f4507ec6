"""`manage.py receiver`: what it answers, what it shows, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from subscriptions.secrets import signing_secrets
from tests.commands import refusal
from webhooks_project.management.commands import receiver as command
from webhooks_project.receiver import Received, Receiver

ROOT = Path(__file__).resolve().parents[2]
SECRET = signing_secrets.generate()


def received(**values: Any) -> Received:
    fields: dict[str, Any] = {
        "id": "event-1", "topic": "order.created", "body": b"{}", "headers": {},
        "verified": None, "problem": "", "at": 0.0, "arrived": datetime.now(UTC),
    }  # fmt: skip
    return Received(**{**fields, **values})


def test_it_fails_as_often_as_it_is_told() -> None:
    def answers(**options: Any) -> list[int]:
        responder = command.Responder(**options)
        return [responder(received()).status for _ in range(3)]

    assert answers() == [200, 200, 200]
    assert answers(fail=404) == [404, 404, 404]
    assert answers(fail_first=2) == [503, 503, 200]
    assert answers(fail=500, fail_first=1) == [500, 200, 200]


def test_a_bad_signature_is_401_whatever_else_would_be_accepted(tmp_path: Path) -> None:
    file = tmp_path / "status"
    file.write_text("204")
    responder = command.Responder(status_file=file)
    assert responder(received()).status == 204
    assert responder(received(verified=False, problem="bad")).status == 401
    file.write_text("503\n")
    assert responder(received(verified=False, problem="bad")).status == 503


@pytest.mark.parametrize("content", ["", "nonsense", "99", "600"])
def test_a_status_file_that_holds_no_status_is_answered_500(tmp_path: Path, content: str) -> None:
    file = tmp_path / "status"
    file.write_text(content)
    one = received()
    assert command.Responder(status_file=file)(one).status == 500
    assert "not a status" in one.problem
    assert "not a status" in refusal("receiver", "--status-file", str(file), code=2)


def test_a_delay_is_added_to_every_answer() -> None:
    assert command.Responder(delay=2.5)(received()).delay == 2.5


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "none"),
        ({"headers": {"webhook-signature": "v1,x"}}, "unchecked"),
        ({"headers": {"webhook-signature": "v1,x"}, "verified": True}, "ok"),
        ({"headers": {"webhook-signature": "v1,x"}, "verified": False}, "bad"),
        ({"verified": False}, "none"),
    ],
)
def test_the_signature_is_told_in_a_word(values: dict[str, Any], word: str) -> None:
    assert command.signature(received(**values)) == word


def test_a_line_shows_nothing_that_moves_the_cursor() -> None:
    one = received(id="a\x1b[2J", topic="x\r\ny", answered=200)
    assert "\x1b" not in command.line(one)
    assert len(command.line(one).splitlines()) == 1


def test_a_secret_that_is_none_is_refused_and_nothing_is_promised() -> None:
    message = refusal("receiver", "--secret", "nonsense")
    assert "does not begin with whsec_" in message
    assert "generated" not in message


def test_a_taken_port_is_one_sentence() -> None:
    with Receiver() as taken:
        message = refusal("receiver", "--port", str(taken.port))
    assert "in use" in message
    assert "--port" in message


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "status"
    file.write_text("200")
    assert refusal("receiver", "--status-file", str(file), "--fail-first", "1", code=2)
    assert "not allowed" in refusal("receiver", "--fail", "500", "--status-file", str(file))


@pytest.mark.parametrize("end_by", [signal.SIGINT, signal.SIGTERM])
def test_a_real_receiver_tells_its_address_each_request_and_its_end(
    tmp_path: Path, end_by: signal.Signals
) -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"}
    process = subprocess.Popen(
        [sys.executable, "manage.py", "receiver", "--json", "--secret", SECRET],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        connection = HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        connection.request("POST", "/", b'{"a": 1}', {"webhook-id": "event-1"})
        assert connection.getresponse().status == 401
        connection.close()
        told = json.loads(process.stdout.readline())
        assert (told["id"], told["signature"], told["answered"]) == ("event-1", "none", 401)
        assert told["body"] == '{"a": 1}'
        process.send_signal(end_by)
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def test_a_receiver_whose_reader_has_gone_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "manage.py", "receiver", "--json"],
        cwd=ROOT, env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        url = json.loads(process.stdout.readline())["url"]
        process.stdout.close()
        connection = HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        connection.request("POST", "/", b"{}")
        connection.getresponse()
        connection.close()
        assert process.wait(10) == 1
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait(10)
