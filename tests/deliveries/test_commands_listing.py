"""The commands that show deliveries, and whom an event would reach."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.keeping import listing
from deliveries.management.commands import deliveries as command
from deliveries.models import Attempt, Delivery
from subscriptions import circuit
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription
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
    assert run("deliveries", "--answer", "4xx") == "No delivery is so.\n"


def test_a_list_goes_on_in_batches(three: list[Delivery], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "BATCH", 1)
    assert [one["topic"] for one in listed("--topic", "x.a", "--limit", "2")] == ["x.a", "x.a"]


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


def test_a_live_tail_says_what_is_published_and_attempted_once(
    three: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of before; with a filter; until Ctrl-C."""
    looks = iter(range(3))

    def happens(self: Any) -> bool:
        look = next(looks)
        if look == 0:
            publish("x.a", {})
            publish("x.b", {})
        elif look == 1:
            attempted(Delivery.objects.filter(event__topic="x.a", tenant="").latest("id"), 1, 200)
        else:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(command.Command, "_wait", happens)
    said = listed("--follow", "--subscription", "a")
    assert [(one["what"], one["subscription"]) for one in said] == [
        ("published", "a"), ("attempt", "a"),
    ]  # fmt: skip
    assert (said[1]["status_code"], said[1]["number"], said[1]["duration_ms"]) == (200, 1, 12)


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
