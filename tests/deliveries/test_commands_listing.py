"""The commands that show deliveries, and whom an event would reach."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.utils import timezone

from deliveries import publish
from deliveries.holding import hold
from deliveries.keeping import following, keyset, listing
from deliveries.keeping.discard import discard
from deliveries.keeping.replay import replay
from deliveries.management.commands import deliveries as command
from deliveries.models import Attempt, Delivery
from subscriptions import circuit
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip
from tests.terminal import terminal

pytestmark = pytest.mark.django_db


def listed(*words: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("deliveries", *words, "--json").splitlines()]


def attempted(delivery: Delivery, number: int, code: int | None) -> None:
    Attempt.objects.create(
        delivery=delivery,
        number=number,
        outcome="success" if code == 200 else "http" if code else "timeout",
        status_code=code,
        started_at=timezone.now(),
        duration_ms=12,
    )
    Delivery.objects.filter(pk=delivery.pk).update(attempt_count=number)


@pytest.fixture
def three() -> list[Delivery]:
    """Of a, b and a tenant's, the newest last."""
    make_subscription(name="a", topic_patterns=["x.a"])
    make_subscription(name="b", topic_patterns=["x.b"])
    make_subscription(name="t", topic_patterns=["x.a"], tenant="acme")
    for topic, tenant in (("x.a", ""), ("x.b", ""), ("x.a", "acme")):
        publish(topic, {}, tenant=tenant)
    return list(Delivery.objects.order_by("id"))


def test_deliveries_are_filtered(three: list[Delivery]) -> None:
    first, second, third = three
    Delivery.objects.filter(pk=second.pk).update(status="failed", next_attempt_at=None)
    Delivery.objects.filter(pk=first.pk).update(created_at=timezone.now() - timedelta(hours=3))
    attempted(first, 1, None)
    attempted(second, 1, 503)

    def found(*words: str) -> list[int]:
        return [one["id"] for one in listed(*words)]

    assert found() == [third.pk, second.pk, first.pk]
    assert found("--limit", "1") == [third.pk]
    assert found("--status", "failed") == [second.pk]
    assert found("--status", "pending", "--topic", "x.a") == [third.pk, first.pk]
    assert found("--status", "succeeded") == []
    assert found("--topic", "x.b") == [second.pk]
    assert found("--subscription", "a") == [first.pk]
    assert found("--tenant", "acme") == [third.pk]
    assert found("--tenant", "") == [second.pk, first.pk]
    assert found("--event", second.event_id) == [second.pk]
    assert found("--since", "2h") == [third.pk, second.pk]
    assert found("--answer", "5xx") == [second.pk]
    assert found("--answer", "none") == [first.pk]
    assert run("deliveries", "--answer", "4xx") == "No delivery matches.\n"


def test_a_list_goes_on_in_batches(three: list[Delivery], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BATCH", 1)
    assert [one["topic"] for one in listed("--topic", "x.a", "--limit", "2")] == ["x.a", "x.a"]


def test_a_list_goes_on_on_a_slow_disk_and_says_when_it_gives_up(
    three: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "MAX_SECONDS", -1)
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 1)
    for _ in range(12):
        publish("x.b", {})
    attempted(three[1], 1, 503)
    words, errors = ["--subscription", "b", "--answer", "5xx"], StringIO()
    assert [one["id"] for one in listed(*words)] == [three[1].pk]
    monkeypatch.setattr(listing, "MAX_LOOKED_AT", 5)
    call_command("deliveries", *words, stdout=StringIO(), stderr=errors)
    assert "rows were looked at, and there may be more." in errors.getvalue()


def test_the_list_fits_a_terminal_and_is_coloured(three: list[Delivery]) -> None:
    Delivery.objects.filter(pk=three[0].pk).update(status="failed", next_attempt_at=None)
    with terminal(80) as screen:
        call_command("deliveries", stdout=screen.stream)
    assert "\x1b[31mfailed" in screen.raw
    lines = screen.text.splitlines()
    assert lines[0].split() == ["ID", "STATUS", "TRIES", "TOPIC", "SUBSCRIPTION", "PUBLISHED"]
    assert all(len(line) <= 80 for line in lines)
    assert "just now" in lines[1] or " ago" in lines[1]


def test_what_a_deletion_left_is_listed(three: list[Delivery]) -> None:
    three[0].subscription.delete()
    assert "(deleted)" in run("deliveries")


Happens = Callable[..., list[str]]


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> Happens:
    """The lines of a live tail while these steps happen, one between two looks; then Ctrl-C."""

    def follow(words: Sequence[str], *steps: Callable[[], object]) -> list[str]:
        left = iter(steps)

        def wait(self: Any) -> bool:
            step = next(left, None)
            if step is None:
                raise KeyboardInterrupt
            step()
            return True

        monkeypatch.setattr(command.Command, "_wait", wait)
        return run("deliveries", "--follow", *words).splitlines()

    return follow


def whats(lines: list[str]) -> list[tuple[str, str]]:
    return [(one["what"], one["subscription"]) for one in map(json.loads, lines)]


def test_a_live_tail_says_what_is_published_and_attempted_once(
    three: list[Delivery], followed: Happens
) -> None:
    """Nothing of before; with a filter."""

    def publish_both() -> None:
        publish("x.a", {})
        publish("x.b", {})

    def attempt() -> None:
        delivery = Delivery.objects.filter(event__topic="x.a", tenant="").latest("id")
        Delivery.objects.filter(pk=delivery.pk).update(
            status="succeeded", attempt_count=1, next_attempt_at=None, finished_at=timezone.now()
        )
        attempted(delivery, 1, 200)

    lines = followed(["--subscription", "a", "--json"], publish_both, attempt)
    assert whats(lines) == [("published", "a"), ("attempt", "a")]
    said = json.loads(lines[1])
    assert (said["status_code"], said["number"], said["duration_ms"]) == (200, 1, 12)
    assert said["status"] == "succeeded"


def test_a_live_tail_says_what_was_committed_after_thousands_of_later_ids(
    three: list[Delivery], followed: Happens
) -> None:
    last = three[-1]

    def commit(pk: int, status: str) -> None:
        Delivery.objects.create(
            pk=pk, event_id=last.event_id, subscription_id=last.subscription_id, status=status,
            next_attempt_at=None, finished_at=timezone.now(), created_at=timezone.now(),
        )  # fmt: skip

    lines = followed(
        ["--json"],
        lambda: commit(last.pk + 9_000, "failed"),
        lambda: commit(last.pk + 1, "succeeded"),
        lambda: None,
    )
    said = [json.loads(line) for line in lines]
    assert [(one["what"], one["status"]) for one in said] == [
        ("published", "failed"), ("published", "succeeded"),
    ]  # fmt: skip


def test_a_live_tail_says_every_change_of_status(three: list[Delivery], followed: Happens) -> None:
    """Of what was open before, too; and why, as the audit has it."""
    one = three[0]
    ids = [one.subscription_id]
    lines = followed(
        ["--tenant", "", "--json"],
        lambda: circuit.pause(ids),
        lambda: publish("x.a", {}),  # is not kept for it
        lambda: circuit.reset(ids),
        lambda: (trip(one.subscription), hold(ids)),
        lambda: publish("x.a", {}),
        lambda: circuit.reset(ids, discard_held=True),
        lambda: replay([one.pk]),
        lambda: discard([three[1].pk]),
    )
    assert whats(lines) == [
        ("paused", "a"), ("held", "a"),
        ("resumed", "a"), ("pending", "a"),
        ("tripped", "a"), ("held", "a"),
        ("published", "a"),
        # The test is one transaction, in which PostgreSQL's now() stands still.
        ("discarded", "a"), ("discarded", "a"), ("reset", "a"),
        ("resent", "a"), ("pending", "a"),
        ("discarded", "b"), ("discarded", "b"),
    ]  # fmt: skip


def test_a_live_tail_says_what_is_discarded_however_old_it_is(
    three: list[Delivery], followed: Happens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LATE_SECONDS", 600)
    monkeypatch.setattr(following, "WATCHED_IDS", 1)
    monkeypatch.setattr(following, "MAX_WATCHED", 1)
    assert whats(followed(["--topic", "x.a", "--json"], lambda: discard([three[0].pk]))) == [
        ("discarded", "a")
    ]


def test_a_live_tail_says_what_was_discarded_while_it_could_not_look(
    three: list[Delivery], followed: Happens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an hour; and the second batch of it can not be read at first."""
    monkeypatch.setattr(following, "LATE_SECONDS", 600)
    monkeypatch.setattr(following, "WATCHED_IDS", 0)
    monkeypatch.setattr(following, "BATCH", 1)
    monkeypatch.setattr(command.connection, "close", lambda: None)
    monkeypatch.setattr(command.Command, "_warn", lambda *_: None)
    read, fails = following.Follower._read, iter([False, True])

    def read_or_fail(self: following.Follower, ids: Any) -> list[Delivery]:
        if next(fails, False):
            raise OperationalError("server closed the connection")
        return read(self, ids)

    monkeypatch.setattr(following.Follower, "_read", read_or_fail)

    def discard_and_wait() -> None:
        discard([one.pk for one in three[:2]])
        later = timezone.now() + timedelta(hours=1)
        monkeypatch.setattr(following.timezone, "now", lambda: later)

    lines = followed(["--tenant", "", "--json"], discard_and_wait, lambda: None, lambda: None)
    told = [one["id"] for one in map(json.loads, lines) if "id" in one]
    assert sorted(told) == [one.pk for one in three[:2]]


def test_a_live_tail_keeps_to_the_status_that_is_asked_for(
    three: list[Delivery], followed: Happens
) -> None:
    ids = [three[0].subscription_id]
    lines = followed(
        ["--status", "held", "--json"],
        lambda: publish("x.b", {}),
        lambda: circuit.pause(ids),
        lambda: circuit.reset(ids),
    )
    assert whats(lines) == [("held", "a")]


def test_a_live_tail_fits_a_terminal(
    three: list[Delivery], followed: Happens, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    one = three[0]
    lines = followed(
        ["--subscription", "a"],
        lambda: (trip(one.subscription, "connection refused " * 10), hold([one.subscription_id])),
        lambda: publish("x.a", {}),
        lambda: discard([one.pk]),
    )
    words = [line.partition("  ")[2] for line in lines]
    assert words[0].startswith("Tripped  a  1 of 5 failures in a row; connection refused")
    assert words[1] == f"{one.pk}  held  x.a → a"
    assert re.fullmatch("[0-9]+  published, held  x.a → a", words[2])
    assert f"{one.pk}  discarded  x.a → a  discarded by an operator" in words
    assert all(len(line) <= 80 for line in lines)


def test_a_look_that_the_database_ends_is_made_again(
    three: list[Delivery], followed: Happens, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = iter([True, True, False])
    look_at = following.Follower._look_at_the_audit

    def look(self: following.Follower) -> None:
        if next(broken, False):
            raise OperationalError("server closed the connection")
        look_at(self)

    monkeypatch.setattr(following.Follower, "_look_at_the_audit", look)
    monkeypatch.setattr(command.connection, "close", lambda: None)
    errors = StringIO()
    monkeypatch.setattr(command.Command, "_warn", lambda _, text: errors.write(f"{text}\n"))
    lines = followed(
        ["--json"], lambda: publish("x.a", {}), lambda: None, lambda: None, lambda: None
    )
    assert whats(lines) == [("published", "a")]
    assert errors.getvalue() == (
        "The database is away: server closed the connection; waiting for it.\n"
        "The database is back; what happened meanwhile follows.\n"
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("how", ["ctrl-c", "closed pipe"])
def test_a_live_tail_ends_cleanly(how: str) -> None:
    program = (
        "import django, os, sys; django.setup(); from django.db import connections;"
        "connections['default'].settings_dict['NAME'] = os.environ['TEST_NAME'];"
        "from django.core.management import call_command;"
        "sys.stderr.write('ready\\n'); sys.stderr.flush();"
        "call_command('deliveries', '--follow')"
    )
    name = connection.settings_dict["NAME"]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parent.parent.parent,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings", "TEST_NAME": str(name)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "ready\n"
        make_subscription(topic_patterns=["x"])
        deadline = time.monotonic() + 30
        while not select.select([process.stdout], [], [], 0.1)[0]:
            assert time.monotonic() < deadline
            publish("x", {})
        if how == "ctrl-c":
            process.send_signal(signal.SIGINT)
        else:
            process.stdout.close()
        assert process.wait(30) in (0, 1)
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.wait()


# matching


def test_a_topic_says_whom_it_would_reach_and_why_not_others() -> None:
    make_subscription(name="a", topic_patterns=["order.*"])
    make_subscription(name="near", topic_patterns=["order.created.eu"])
    paused = make_subscription(name="p", topic_patterns=["order.>"])
    circuit.pause([paused.pk])
    text = run("matching", "order.created")
    assert "pending" in text
    assert "it is paused" in text
    assert "near" in text
    found = run_json("matching", "order.created")
    assert [(one["name"], one["becomes"]) for one in found["reached"]] == [
        ("a", "pending"), ("p", None),
    ]  # fmt: skip
    assert [one["name"] for one in found["missed"]] == ["near"]
    assert run("matching", "other").startswith("It would reach no subscription.")
    assert "'a..b'" in refusal("matching", "a..b", code=2)


# discard


def test_deliveries_are_discarded_by_id(three: list[Delivery]) -> None:
    first = three[0].pk
    assert run_json("discard", str(first)) == {"discarded": [first], "refused": {}}
    assert Delivery.objects.get(pk=first).status == "discarded"
    assert refusal("discard", str(first), "999").splitlines() == [
        f"Delivery {first}: it is discarded already",
        "Delivery 999: there is no such delivery",
    ]


@pytest.mark.parametrize("name", ["deliveries", "matching", "discard"])
def test_help_fits_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        call_command(name, "--help")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
