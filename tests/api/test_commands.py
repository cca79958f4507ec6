"""The commands that make, list and revoke keys."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from api import keys
from api.models import SCOPES, ApiKey
from tests.commands import refusal, run, run_json

pytestmark = pytest.mark.django_db


def test_a_key_is_shown_by_the_command_that_makes_it_and_by_no_other() -> None:
    shown = run("create_api_key", "shop", "--scope", "events:write", "--tenant", "acme")
    text = next(line.split()[1] for line in shown.splitlines() if line.startswith("  key "))
    caller = keys.find(text)
    assert caller is not None
    assert caller.tenant == "acme"
    listed = run("api_keys") + run("api_keys", "--json")
    assert text not in listed
    assert ApiKey.objects.get().prefix in listed


def test_all_scopes_of_a_key_are_shown_within_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scopes = (part for scope in SCOPES for part in ("--scope", scope))
    made = run("create_api_key", "s" * 40, "--all-tenants", *scopes)
    for shown in (made, run("api_keys")):
        assert all(scope in shown for scope in SCOPES)
        assert max(map(len, shown.splitlines())) <= 80


def test_a_key_is_made_with_scopes_an_end_and_all_tenants() -> None:
    made = run_json(
        *("create_api_key", "ops", "--scope", "deliveries:read", "--scope", "deliveries:write"),
        *("--all-tenants", "--expires-in", "30"),
    )
    caller = keys.find(made["key"])
    assert caller is not None
    assert caller.tenant is None
    assert caller.scopes == {"deliveries:read", "deliveries:write"}
    left = ApiKey.objects.get().expires_at - timezone.now()
    assert timedelta(days=29) < left <= timedelta(days=30)


@pytest.mark.parametrize(
    "words",
    [
        ["--scope", "events:write"],
        ["--scope", "events:write", "--tenant", "a", "--all-tenants"],
        ["--all-tenants"],
        ["--scope", "everything", "--all-tenants"],
        ["--scope", "events:write", "--all-tenants", "--expires-in", "0"],
        ["--scope", "events:write", "--tenant", "a" * 65],
    ],
)
def test_what_is_not_said_or_wrong_is_asked_for(words: list[str]) -> None:
    with pytest.raises(CommandError) as caught:
        call_command("create_api_key", "shop", *words)
    assert caught.value.returncode in (1, 2)
    assert not ApiKey.objects.exists()


@pytest.mark.parametrize("tenant", [" acme", "a\tb", "acme\u200b"])
def test_what_can_be_no_tenant_is_refused_in_a_sentence(tenant: str) -> None:
    words = ("create_api_key", "shop", "--scope", "events:write", "--tenant", tenant)
    said = refusal(*words, code=2)
    assert f"The tenant {tenant!r} begins or ends with a space" in said
    assert not ApiKey.objects.exists()


def test_a_key_is_revoked_once_and_then_listed_with_all_only() -> None:
    row, text = keys.create_key("shop", ["events:write"])
    assert "revoked" in run("revoke_api_key", f"whk_{row.prefix}")
    assert keys.find(text) is None
    assert "already revoked" in run("revoke_api_key", row.prefix)
    assert row.prefix not in run("api_keys")
    assert [key["state"] for key in run_json("api_keys", "--all")] == ["revoked"]


def test_an_unknown_key_revokes_none_and_a_whole_key_is_not_repeated() -> None:
    row, text = keys.create_key("shop", ["events:write"])
    assert "nothing was done" in refusal("revoke_api_key", row.prefix, "zzzzzzzz")
    assert keys.find(text)
    stranger = "whk_aaaaaaaa_" + "b" * 43
    assert "bbb" not in refusal("revoke_api_key", stranger)
    run("revoke_api_key", text)
    assert keys.find(text) is None
