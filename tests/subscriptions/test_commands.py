"""The commands with which an operator adds subscriptions and switches them."""

from __future__ import annotations

import io
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError
from django.utils import timezone

from subscriptions import circuit
from subscriptions.circuit import fuse
from subscriptions.models import Subscription, TripFuse
from subscriptions.secrets import crypto, signing_secrets
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

URL = "https://example.com/hook"


def trip(subscription: Subscription, error: str = "503 Service Unavailable") -> None:
    subscription.refresh_from_db()
    circuit.record(
        [
            circuit.Report(
                subscription.pk,
                subscription.circuit_epoch,
                circuit.tally([False], gone=True),
                error,
                failed=True,
            )
        ]
    )
    subscription.refresh_from_db()
    assert subscription.state == "tripped"


def stored_secrets(subscription: Subscription) -> list[str]:
    return [crypto.decrypt(one.ciphertext).decode() for one in subscription.secrets.live()]


def test_a_new_subscription_shows_its_secret_once() -> None:
    output = run("add_subscription", "billing", URL, "--pattern", "order.*", "--pattern", "a.>")
    subscription = Subscription.objects.get(name="billing")
    [secret] = stored_secrets(subscription)
    assert output.count(secret) == 1
    assert str(subscription.pk) in output
    assert subscription.topic_patterns == ["order.*", "a.>"]
    assert secret not in run("subscriptions") + run("subscriptions", "--json")


def test_every_option_of_a_new_subscription_is_kept() -> None:
    answer = run_json(
        "add_subscription", "billing", URL, "--pattern", "order.*",
        "--header", "X-Team: blue", "--header", "X-Empty:",
        "--max-in-flight", "3", "--recovery", "manual",
    )  # fmt: skip
    subscription = Subscription.objects.get(name="billing")
    assert subscription.headers == {"X-Team": "blue", "X-Empty": ""}
    assert (subscription.max_in_flight, subscription.recovery) == (3, "manual")
    assert answer == {
        "id": str(subscription.pk),
        "tenant": "",
        "all_tenants": False,
        "name": "billing",
        "url": URL,
        "topic_patterns": ["order.*"],
        "secret": stored_secrets(subscription)[0],
    }


def test_a_group_stands_for_its_patterns(configure: Callable[..., None]) -> None:
    configure(topic_groups={"all attacks": ("attacker.>", "order.*")})
    run("add_subscription", "x", URL, "--pattern", "order.*", "--group", "all attacks")
    assert Subscription.objects.get().topic_patterns == ["order.*", "attacker.>"]
    assert "'all attacks'" in refusal("add_subscription", "y", URL, "--group", "attacks", code=2)


@pytest.mark.parametrize("from_stdin", [False, True])
def test_a_given_secret_is_used_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, from_stdin: bool
) -> None:
    secret = signing_secrets.generate()
    monkeypatch.setattr("sys.stdin", io.StringIO(secret + "\n"))
    given = "-" if from_stdin else secret
    output = run("add_subscription", "x", URL, "--pattern", "a", "--secret", given)
    assert secret not in output
    assert stored_secrets(Subscription.objects.get()) == [secret]


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["x", URL], 2, "--pattern"),
        (["x", URL, "--pattern", "a..b"], 2, "'a..b'"),
        (["x", "ftp://example.com", "--pattern", "a"], 2, "url: "),
        (["x", "http://127.0.0.1/", "--pattern", "a"], 2, "loopback"),
        (["x", URL, "--pattern", "a", "--header", "Host: b"], 2, "set by the sender"),
        (["x", URL, "--pattern", "a", "--header", "A: 1", "--header", "A: 2"], 2, "twice"),
        # With 2 from a shell; Django gives argparse's own errors 1 where it is called from Python.
        (["x", URL, "--pattern", "a", "--header", "no colon"], 1, "'Name: value'"),
        (["x", URL, "--pattern", "a", "--max-in-flight", "0"], 1, "from 1 to 1000"),
        (["x", URL, "--pattern", "a", "--secret", "hunter2"], 1, "whsec_"),
    ],
)
def test_a_wrong_subscription_is_refused_with_the_reason(
    words: list[str], code: int, reason: str
) -> None:
    message = refusal("add_subscription", *words, code=code)
    assert reason in message
    assert "hunter2" not in message
    assert not Subscription.objects.exists()


def test_a_name_is_taken_only_once() -> None:
    make_subscription(name="billing")
    assert "has a subscription with this name already" in refusal(
        "add_subscription", "billing", URL, "--pattern", "a"
    )


def test_rotating_shows_the_new_secret_once_and_when_the_old_one_ends() -> None:
    subscription = make_subscription(name="billing")
    [old] = stored_secrets(subscription)
    answer = run_json("rotate_secret", "billing", "--overlap", "3600")
    assert stored_secrets(subscription) == [answer["secret"], old]
    ends = subscription.secrets.get(expires_at__isnull=False).expires_at
    assert answer["old_ends_at"] == ends.isoformat()
    assert abs(ends - timezone.now() - timedelta(hours=1)) < timedelta(minutes=1)
    output = run("rotate_secret", str(subscription.pk), "--overlap", "0")
    [new] = stored_secrets(subscription)
    assert output.count(new) == 1
    assert "old ends  2" in output


def test_rotating_to_a_given_secret_does_not_repeat_it() -> None:
    subscription = make_subscription(name="billing")
    secret = signing_secrets.generate()
    assert secret not in run("rotate_secret", "billing", "--secret", secret)
    assert secret in stored_secrets(subscription)


@pytest.mark.parametrize("by", ["name", "id"])
def test_a_tripped_circuit_is_reset_by_name_or_id(by: str) -> None:
    subscription = make_subscription(name="billing")
    trip(subscription)
    output = run("reset_circuit", "billing" if by == "name" else str(subscription.pk))
    assert output == "billing: reset; what was held is sent\n"
    subscription.refresh_from_db()
    assert (subscription.state, subscription.last_error) == ("active", "")
    assert run("reset_circuit", "billing") == "billing: already active; nothing to reset\n"


def test_resetting_all_leaves_paused_ones_paused() -> None:
    first, second, paused = (make_subscription(name=name) for name in ("a", "b", "c"))
    trip(first)
    trip(second)
    circuit.pause([paused.pk])
    assert run_json("reset_circuit", "--all") == {"changed": ["a", "b"], "unchanged": []}
    assert run("reset_circuit", "--all") == "No subscription is tripped.\n"
    assert run_json("reset_circuit", "c")["unchanged"] == [{"name": "c", "state": "paused"}]
    assert "`manage.py resume`" in run("reset_circuit", "c")
    assert [one.state for one in Subscription.objects.all()] == ["active", "active", "paused"]


def test_pausing_and_resuming_say_what_changed_and_what_was_already_so() -> None:
    make_subscription(name="a")
    tripped = make_subscription(name="b")
    trip(tripped)
    assert run("pause", "a", "b") == "".join(
        f"{name}: paused; what was pending is held\n" for name in "ab"
    )
    assert run_json("pause", "a") == {
        "changed": [],
        "unchanged": [{"name": "a", "state": "paused"}],
    }
    assert run("resume", "a", "--discard-held") == "a: resumed; what was held is discarded\n"
    assert run("resume", "a") == "a: already active\n"


def test_resuming_a_tripped_one_is_refused_with_its_error() -> None:
    make_subscription(
        name="a",
    )
    tripped = make_subscription(name="b")
    run("pause", "a")
    trip(tripped, "410 Gone")
    message = refusal("resume", "a", "b")
    assert "410 Gone" in message
    assert "reset_circuit" in message
    assert Subscription.objects.get(name="a").state == "paused"


@pytest.mark.parametrize("command", ["pause", "resume", "reset_circuit"])
def test_one_unknown_name_means_that_nothing_is_done(command: str) -> None:
    subscription = make_subscription(name="a")
    if command == "resume":
        circuit.pause([subscription.pk])
    if command == "reset_circuit":
        trip(subscription)
    subscription.refresh_from_db()
    before = subscription.state
    unknown = str(uuid.uuid4())
    message = refusal(command, "a", "nobody", unknown)
    assert "'nobody'" in message
    assert unknown in message
    subscription.refresh_from_db()
    assert subscription.state == before


@pytest.mark.parametrize("words", [[], ["a", "--all"]])
def test_a_reset_needs_names_or_all(words: list[str]) -> None:
    assert "--all" in refusal("reset_circuit", *words, code=2)


def test_a_database_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise OperationalError("connection failed:\n  no such host")

    monkeypatch.setattr("subscriptions.management.base.find_subscription", fail)
    assert refusal("pause", "a") == ("The database cannot be used: connection failed: no such host")


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (["pause"], 2, "usage: "),
        (["reset_circuit"], 2, "--all"),
        (["receiver", "-h"], 0, ""),
        (["add_subscription", "x", URL, "--header", "no colon"], 2, "'Name: value'"),
    ],
)
def test_exit_codes_and_help_reach_the_shell(words: list[str], code: int, error: str) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "manage.py", *words],
        cwd=root, capture_output=True, text=True, timeout=60,
        env={"PATH": "", "COLUMNS": "80", "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )  # fmt: skip
    assert done.returncode == code
    assert error in done.stderr
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "command",
    [
        "add_subscription",
        "pause",
        "reset_circuit",
        "reset_fuse",
        "resume",
        "rotate_keys",
        "rotate_secret",
    ],
)
def test_help_fits_a_terminal_and_has_examples_and_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        call_command(command, "--help")
    output = capsys.readouterr().out
    assert "examples:\n" in output
    assert "  2  the command line, or a value in it, is not valid\n" in output
    assert max(map(len, output.splitlines())) <= 80


def test_the_fuse_is_reset_by_whoever_says_so() -> None:
    assert run("reset_fuse") == "The fuse has not blown; nothing to reset.\n"
    TripFuse.objects.create(blown_at=timezone.now())
    assert run("reset_fuse") == "The fuse is reset: circuits may trip as before.\n"
    assert not fuse.blown()
    assert run_json("reset_fuse") == {"reset": False}


# Tenants


def test_a_name_is_the_applications_unless_a_tenant_is_said() -> None:
    own, acme = make_subscription(name="billing"), make_subscription(name="billing", tenant="acme")
    assert run("pause", "billing") == "billing: paused; what was pending is held\n"
    assert run("pause", "billing", "--tenant", "acme").startswith("billing (acme): paused")
    assert run("resume", str(acme.pk)).startswith("billing (acme): resumed")
    own.refresh_from_db()
    acme.refresh_from_db()
    assert (own.state, acme.state) == ("paused", "active")


def test_a_name_of_others_says_whose_it_may_be() -> None:
    for tenant in ("acme", "other"):
        make_subscription(name="billing", tenant=tenant)
    told = refusal("pause", "billing", "nobody")
    assert "one of the tenant 'acme', the tenant 'other': say with --tenant whose" in told
    assert "'nobody'; `manage.py subscriptions` lists them." in told
    assert "Nothing was done." in told
    assert Subscription.objects.active().count() == 2
    stranger = Subscription.objects.get(tenant="other")
    assert "of the tenant 'acme'" in refusal("pause", str(stranger.pk), "--tenant", "acme")
    assert "do not print" in refusal("pause", "billing", "--tenant", "a\0")


def test_add_subscription_takes_a_tenant_or_all() -> None:
    words = ("add_subscription", "a", URL, "--pattern", "x")
    answer = run_json(*words, "--tenant", "acme")
    assert (answer["tenant"], answer["all_tenants"]) == ("acme", False)
    assert "tenant    the events of all tenants" in run(*words, "--all-tenants")
    found = list(Subscription.objects.values_list("tenant", "name", "all_tenants"))
    assert found == [("", "a", True), ("acme", "a", False)]
    assert "all_tenants: Only a subscription of the application" in refusal(
        "add_subscription", "b", URL, "--pattern", "x", "--tenant", "acme", "--all-tenants", code=2
    )
    assert "with this name already" in refusal(*words, "--tenant", "acme")


def test_reset_circuit_all_can_be_for_one_tenant() -> None:
    own, acme, other = (
        make_subscription(name="billing", tenant=tenant) for tenant in ("", "acme", "other")
    )
    for one in (own, acme, other):
        trip(one)
    assert run_json("reset_circuit", "--all", "--tenant", "acme") == {
        "changed": ["billing (acme)"],
        "unchanged": [],
    }
    assert run_json("reset_circuit", "--all", "--tenant", "")["changed"] == ["billing"]
    assert run_json("reset_circuit", "--all")["changed"] == ["billing (other)"]


def test_rotate_secret_says_when_too_many_are_in_force() -> None:
    subscription = make_subscription(name="billing")
    for _ in range(9):
        run("rotate_secret", "billing")
    assert "10 secrets are in force" in refusal("rotate_secret", "billing")
    assert subscription.secrets.live().count() == 10
    assert "has a new" in run("rotate_secret", "billing", "--overlap", "0")
    assert subscription.secrets.live().count() == 1


def test_rotate_secret_knows_tenants() -> None:
    make_subscription(name="billing", tenant="acme")
    assert "--tenant" in refusal("rotate_secret", "billing")
    assert "'billing (acme)' has a new" in run("rotate_secret", "billing", "--tenant", "acme")
