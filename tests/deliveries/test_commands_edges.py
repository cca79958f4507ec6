"""Commands with what is rarely given to them: names alike, nothing, no text, an interruption."""

from __future__ import annotations

import os
import pwd
import signal
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from deliveries import publish
from deliveries.management.commands import send_test
from deliveries.models import Delivery
from subscriptions import circuit
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db(transaction=True)


def failed(**fields: Any) -> int:
    """A delivery that failed, of a new subscription."""
    one = make_subscription(**fields)
    publish("test.one", {}, tenant=one.tenant)
    delivery = Delivery.objects.get(subscription=one)
    Delivery.objects.filter(pk=delivery.pk).update(status="failed", next_attempt_at=None)
    return delivery.pk


def test_a_dry_run_counts_subscriptions_that_look_alike() -> None:
    ids = [failed(name="good (acme)"), failed(name="good", tenant="acme")]
    found = run_json("replay", *map(str, ids), "--dry-run")
    assert (found["chosen"], found["by_subscription"]) == (2, {"good (acme)": 2})


def test_the_audit_of_one_is_of_that_one() -> None:
    named = make_subscription(name="12345678123456781234567812345678")
    theirs = make_subscription(name="theirs", tenant="acme")
    circuit.pause([named.pk, theirs.pk])
    assert len(run_json("audit", "--subscription", named.name)) == len(
        run_json("audit", "--subscription", str(named.pk))
    )
    assert run_json("audit", "--subscription", str(theirs.pk))
    assert run_json("audit", "--subscription", str(theirs.pk), "--tenant", "other") == []
    assert "has the name or id ''" in refusal("audit", "--subscription", "")


@pytest.mark.parametrize(
    "words",
    [
        ("deliveries", "--topic", "\udcff"),
        ("deliveries", "--event", "a\0"),
        ("replay", "--subscription", "a", "--topic", "\udcff"),
    ],
)
def test_what_is_no_text_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(CommandError, match="that does not print"):
        call_command(*words)


def test_options_that_mean_nothing_here_are_refused() -> None:
    assert "--limit" in refusal("deliveries", "--follow", "--limit", "1", code=2)
    for option in ("--tenant", "--topic"):
        assert "go with --subscription" in refusal("replay", "1", option, "", code=2)
    assert "--subscription NAME" in refusal("replay", "1", "--subscription", "", code=2)
    assert "host" in refusal("subscriptions", "--host", "", code=2).lower()


def test_whose_subscriptions_were_looked_at_is_said() -> None:
    trip(make_subscription(name="bad"))
    said = run("reset_circuit", "--all", "--tenant", "acme")
    assert said == "No subscription of the tenant 'acme' is tripped.\n"
    said = run("subscriptions", "--state", "paused", "--tenant", "")
    assert said == "No subscription of the application itself is paused.\n"


def test_an_interrupted_command_ends_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    make_subscription(name="a")
    monkeypatch.setattr(send_test, "send_test", interrupted)
    with pytest.raises(CommandError, match="Interrupted") as caught:
        call_command("send_test", "a")
    assert caught.value.returncode == 128 + signal.SIGINT


def test_who_acted_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    make_subscription(name="a")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.delenv("SUDO_USER", raising=False)
    run("pause", "a")
    me = pwd.getpwuid(os.getuid()).pw_name
    assert run_json("audit", "--action", "paused")[0]["actor"] == me
