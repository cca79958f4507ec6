"""Canaries: secrets that are known to the test, looked for wherever they do not belong."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from tests.security.canary import Canary
from tests.security.story import (
    CREDENTIALS,
    FIRST,
    HEADER,
    LOOPBACK,
    SCRIPT,
    SECOND,
    SECRETS,
    URL,
    Story,
    tell,
)

# Makes sure that there is a database for tests; the story commits its rows itself.
pytestmark = [pytest.mark.django_db, pytest.mark.xdist_group("story")]

EVERYTHING = (*SECRETS, *CREDENTIALS)


@pytest.fixture(scope="module")
def story(django_db_setup: None, django_db_blocker: Any) -> Iterator[Story]:
    """Told once, with rows that are really committed, and read by all tests of this module."""
    from django.conf import settings

    with pytest.MonkeyPatch.context() as monkeypatch, django_db_blocker.unblock():
        monkeypatch.setattr(
            settings,
            "WEBHOOKS",
            replace(settings.WEBHOOKS, allowed_networks=LOOPBACK, quick_retries=(0.0, 0.0)),
        )
        try:
            yield tell(monkeypatch, Client())
        finally:
            call_command("flush", verbosity=0, interactive=False)


def found(canaries: tuple[Canary, ...], texts: dict[str, str]) -> list[str]:
    """Which canary sings where."""
    return [
        f"{canary.what} in {place}: …{text[max(0, text.index(shape) - 60) :][:160]}…"
        for place, text in texts.items()
        for canary in canaries
        if (shape := canary.sings_in(text))
    ]


def numbered(texts: list[str]) -> dict[str, str]:
    return {str(number): text for number, text in enumerate(texts)}


def test_no_secret_is_in_the_log_at_its_most_talkative(story: Story) -> None:
    assert any("a mistake of our own" in line for line in story.log), "tracebacks are in it"
    assert found(EVERYTHING, numbered(story.log)) == []


def test_no_signing_secret_is_in_the_log_of_sql(story: Story) -> None:
    assert any("subscriptions_signingsecret" in line for line in story.sql)
    assert any(HEADER in line for line in story.sql), "values are logged, too"
    assert found(SECRETS, numbered(story.sql)) == []


def test_no_line_of_the_log_holds_what_moves_a_cursor(story: Story) -> None:
    for line in (*story.log, *story.sql):
        assert line.replace("\n", "").replace("\t", "").isprintable(), ascii(line)


def test_no_command_repeats_a_secret_that_it_was_given(story: Story) -> None:
    assert any("secret    as given" in text for text in story.output.values())
    assert any("410 gone" in text for text in story.output.values())
    assert found((*SECRETS, CREDENTIALS[0]), story.output) == []
    listed = {name for name, text in story.output.items() if URL in text}
    assert all("subscriptions" in name for name in listed), "--json tells the URL, nobody else"


def test_no_secret_is_in_a_message_of_the_broker(story: Story) -> None:
    assert any('"deliveries.tasks.deliver"' in text for text in story.messages)
    assert found(EVERYTHING, numbered(story.messages)) == []


def test_no_signing_secret_is_in_any_row(story: Story) -> None:
    assert len(story.rows["subscriptions_signingsecret"]) >= 10
    assert {"deliveries_attempt", "django_admin_log", "django_session"} <= set(story.rows)
    for table, rows in story.rows.items():
        assert found(SECRETS, numbered(rows)) == [], table


def test_credentials_of_receivers_are_in_the_row_of_their_subscription_only(story: Story) -> None:
    for table, rows in story.rows.items():
        if table == "subscriptions_subscription":
            assert found(CREDENTIALS, numbered(rows)) != []
        else:
            assert found(CREDENTIALS, numbered(rows)) == [], table


def test_no_signing_secret_is_on_a_page_of_the_admin(story: Story) -> None:
    visited = " ".join(story.pages)
    for part in (
        "/admin/subscriptions/subscription/",
        "/rotate-secret/",
        "/history/",
        "/naive/subscriptions/signingsecret/",
        "/naive/deliveries/attempt/",
    ):
        assert part in visited
    assert found(SECRETS, story.pages) == []


def test_what_strangers_wrote_is_text_on_every_page(story: Story) -> None:
    """Answers, payloads and names with tags in them: escaped, or not shown."""
    assert any("canary-script" in page for page in story.pages.values())
    for url, page in story.pages.items():
        assert SCRIPT not in page, url
        assert "<img src=x" not in page, url


def test_no_signing_secret_is_in_a_traceback_or_an_error_report(story: Story) -> None:
    assert len(story.tracebacks) == 8
    assert all("a mistake of our own" in text for text in story.tracebacks.values())
    assert found(SECRETS, story.tracebacks) == []


@pytest.mark.parametrize(
    "kind",
    [
        "Claim", "ClaimedLane", "ClaimedDelivery", "PreparedRequest", "Sender", "Transport",
        "WebhookSettings", "Subscription", "SigningSecret", "list", "Event", "Delivery", "Attempt",
    ],
)  # fmt: skip
def test_no_secret_is_in_a_repr(story: Story, kind: str) -> None:
    # Where a request goes may be shown; what it is signed with, or allowed by, may not.
    assert found((*SECRETS, CREDENTIALS[0]), {kind: story.reprs[kind]}) == []


def test_a_secret_that_is_shown_once_is_nowhere_else(story: Story) -> None:
    """Two that the admin made and showed: not in the log of a page's rendering, nor in a row."""
    shown = tuple(story.shown_once.values())
    assert len(shown) == 2
    assert found(shown, numbered(story.log + story.sql + story.messages)) == []
    assert found(shown, story.pages) == []
    for table, rows in story.rows.items():
        assert found(shown, numbered(rows)) == [], table


@pytest.mark.parametrize("secret", [FIRST, SECOND])
def test_the_trap_works_a_secret_is_found_in_each_of_its_shapes(secret: str) -> None:
    (canary,) = [one for one in SECRETS if one.sings_in(secret)]
    key = base64.b64decode(secret.removeprefix("whsec_"))
    texts = [f"x{secret}y", f"secret={secret!r}", f"{key!r}", key.hex(), secret.encode().hex()]
    for before in ("", ".", "..", '["'):
        texts.append(base64.b64encode(f"{before}{secret}]".encode()).decode())
    for text in texts:
        assert canary.sings_in(text), text
    assert not canary.sings_in("whsec_")
