"""`manage.py receiver`: a receiver on this machine that shows what arrives."""

from __future__ import annotations

import json
import signal
import threading
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.transport import text_for_operators
from subscriptions.management.base import OperatorCommand, secret_argument, whole_number
from webhooks_project.receiver import Answer, Received, Receiver, accept


def status_in(path: Path) -> int:
    """The status in a file. `OSError` if it cannot be read, `ValueError` if it holds none."""
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not (text.isascii() and text.isdigit() and 200 <= int(text) <= 599):
        raise ValueError(f"it holds {text[:40]!r}, not a status from 200 to 599")
    return int(text)


class Responder:
    """Decides the answers, by the command's options."""

    def __init__(
        self,
        *,
        fail: int | None = None,
        fail_first: int | None = None,
        delay: float = 0.0,
        status_file: Path | None = None,
    ) -> None:
        self._fail = 503 if fail is None and fail_first is not None else fail
        self._left_to_fail = fail_first
        self._delay = delay
        self._status_file = status_file

    def __call__(self, received: Received) -> Answer:
        answer = self._decide(received)
        return Answer(answer.status, answer.body, answer.headers, self._delay)

    def _decide(self, received: Received) -> Answer:
        if self._status_file is not None:
            try:
                status = status_in(self._status_file)
            except (OSError, ValueError) as error:
                received.problem = f"{self._status_file}: {error}"
                return Answer(500, b"The status file cannot be read.\n")
            answer = accept(received)
            return Answer(status) if answer.status == 200 or status >= 300 else answer
        if self._fail is not None:
            if self._left_to_fail is None:
                return Answer(self._fail)
            if self._left_to_fail:
                self._left_to_fail -= 1
                return Answer(self._fail)
        return accept(received)


def signature(received: Received) -> str:
    """`ok`, `bad`, `none` (there is none) or `unchecked` (no secret is known)."""
    if not received.header("webhook-signature"):
        return "none"
    if received.verified is None:
        return "unchecked"
    return "ok" if received.verified else "bad"


HEADINGS = f"{'TIME':<8}  {'ANSWER':<6}  {'SIGNATURE':<9}  {'ID':<36}  TOPIC"


def line(received: Received) -> str:
    """One request, for people; what came over the wire is made harmless to look at."""
    text = (
        f"{received.arrived.astimezone():%H:%M:%S}  {received.answered:<6}  "
        f"{signature(received):<9}  {_harmless(received.id or '-'):<36}  "
        f"{_harmless(received.topic or '-')}"
    )
    return f"{text}\n          {_harmless(received.problem)}" if received.problem else text


def _harmless(text: str) -> str:
    return " ".join(text_for_operators(text.encode("utf-8", "replace")).split())


def as_json(received: Received) -> str:
    return json.dumps(
        {
            "at": received.arrived.isoformat(),
            "id": received.id,
            "topic": received.topic,
            "signature": signature(received),
            "problem": received.problem,
            "answered": received.answered,
            "body": received.body.decode("utf-8", "replace"),
        }
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86400:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 86400")
    return value


class Command(OperatorCommand):
    help = (
        "Receive webhooks on 127.0.0.1, verify their signatures and show one line for each. To "
        "send here, allow it: WEBHOOKS_ALLOWED_NETWORKS=127.0.0.0/8. Ctrl-C ends it."
    )
    examples = (
        "--port 9000 --secret whsec_…",
        "--port 9000 --fail-first 3",
        "--port 9000 --status-file answer  # echo 503 > answer",
    )
    # It needs neither database nor keys.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--port",
            type=whole_number(0, 65535),
            default=0,
            help="the port to listen on; 0: any free one (%(default)s)",
        )
        parser.add_argument(
            "--secret",
            type=secret_argument,
            action="append",
            default=[],
            metavar="whsec_…",
            dest="secrets",
            help="a signing secret to verify with; - reads it from standard input; repeatable",
        )
        failing = parser.add_mutually_exclusive_group()
        failing.add_argument(
            "--fail", type=whole_number(200, 599), metavar="STATUS", help="answer this, always"
        )
        failing.add_argument(
            "--status-file",
            type=Path,
            metavar="PATH",
            help="answer what this file says (such as 200 or 503) when the request comes",
        )
        parser.add_argument(
            "--fail-first",
            type=whole_number(0, 10**9),
            metavar="N",
            help="fail N requests (with --fail's status, or 503), then accept",
        )
        parser.add_argument(
            "--delay",
            type=_seconds,
            default=0.0,
            metavar="SECONDS",
            help="answer that much later",
        )
        output = parser.add_mutually_exclusive_group()
        output.add_argument("--json", action="store_true", help="one line of JSON a request")
        output.add_argument("--quiet", action="store_true", help="show only the address")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["status_file"] is not None:
            if options["fail_first"] is not None:
                raise CommandError("--fail-first does not go with --status-file.", returncode=2)
            try:
                status_in(options["status_file"])
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise CommandError(f"{options['status_file']}: {reason}.", returncode=2) from None
        ended = threading.Event()
        unwritten: list[OSError] = []

        def show(received: Received) -> None:
            try:
                self._write(as_json(received) if options["json"] else line(received))
            except OSError as error:
                unwritten.append(error)
                ended.set()

        try:
            receiver = Receiver(
                port=options["port"],
                secrets=options["secrets"],
                respond=Responder(
                    fail=options["fail"],
                    fail_first=options["fail_first"],
                    delay=options["delay"],
                    status_file=options["status_file"],
                ),
                on_request=None if options["quiet"] else show,
                keep=False,
            )
        except OSError as error:
            raise CommandError(
                f"Port {options['port']} cannot be listened on: {error.strerror}. "
                "Choose another with --port."
            ) from None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        with receiver:
            if options["json"]:
                self._write(json.dumps({"url": receiver.url}))
            else:
                self._write(f"Listening on {receiver.url} (Ctrl-C ends it)")
                if not options["quiet"]:
                    self._write(HEADINGS)
            ended.wait()
        if unwritten:
            raise unwritten[0]
        if not options["json"]:
            requests = "request" if receiver.count == 1 else "requests"
            self._write(f"{receiver.count:,} {requests} received.")

    def _write(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()
