"""Subscriptions are made and changed in the admin."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client

from subscriptions.admin.forms import SubscriptionForm
from subscriptions.models import Subscription
from tests.factories import make_subscription
from tests.subscriptions.in_the_admin import (
    LIST,
    SECRET,
    change_page,
    fields,
    filled,
    shown_form,
)
from tests.subscriptions.test_commands import stored_secrets, trip

pytestmark = pytest.mark.django_db


def test_a_new_subscription_shows_its_secret_once_and_stores_it_nowhere_readable(
    admin_client: Client,
) -> None:
    response = admin_client.post(f"{LIST}add/", fields())
    subscription = Subscription.objects.get(name="billing")
    [secret] = stored_secrets(subscription)
    assert response.status_code == 200
    assert html.unescape(response.content.decode()).count(secret) == 1
    assert "no-store" in response["Cache-Control"]
    assert not response.cookies.get("messages")
    assert secret not in str(dict(admin_client.session))
    assert secret not in str(LogEntry.objects.values())
    for page in (LIST, change_page(subscription), f"{LIST}{subscription.pk}/history/"):
        assert not SECRET.search(html.unescape(admin_client.get(page).content.decode()))


def test_a_refused_subscription_says_which_patterns_are_wrong(admin_client: Client) -> None:
    patterns = "order.*\na..b\n\n  >.x  "
    response = admin_client.post(f"{LIST}add/", fields(topic_patterns=patterns))
    errors = response.context["adminform"].form.errors["topic_patterns"]
    assert len(errors) == 2
    assert "'a..b'" in errors[0]
    assert "'>.x'" in errors[1]
    assert "a..b" in response.content.decode()
    assert not Subscription.objects.exists()


def test_a_subscription_without_patterns_or_with_a_bad_url_is_refused(
    admin_client: Client,
) -> None:
    response = admin_client.post(
        f"{LIST}add/", fields(topic_patterns=" \n ", url="http://169.254.169.254/")
    )
    assert set(response.context["adminform"].form.errors) == {"topic_patterns", "url"}


@pytest.mark.parametrize("text", ["a\r\nb.*\r\na\n", '["a", "b.*"]'])
def test_patterns_are_written_by_line_or_pasted_as_a_list(text: str) -> None:
    form = SubscriptionForm(fields(topic_patterns=text))
    assert form.is_valid(), form.errors
    assert form.cleaned_data["topic_patterns"] == ["a", "b.*"]


def test_a_group_is_a_checkbox_for_its_patterns(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    configure(topic_groups={"attacks": ("attacker.>", "alert.*"), "orders": ("order.*",)})
    admin_client.post(f"{LIST}add/", fields(topic_patterns="own", groups=["attacks"]))
    subscription = Subscription.objects.get()
    assert subscription.topic_patterns == ["own", "attacker.>", "alert.*"]
    shown = shown_form(admin_client, subscription)
    assert (shown["topic_patterns"], shown["groups"]) == ("own", ["attacks"])
    admin_client.post(change_page(subscription), {**shown, "groups": ["orders"]})
    subscription.refresh_from_db()
    assert subscription.topic_patterns == ["own", "order.*"]


def test_without_groups_there_are_no_checkboxes(admin_client: Client) -> None:
    assert "Topic groups" not in admin_client.get(f"{LIST}add/").content.decode()


def test_stored_patterns_that_are_no_texts_can_be_repaired(admin_client: Client) -> None:
    subscription = make_subscription()
    Subscription.objects.filter(pk=subscription.pk).update(topic_patterns=[{"not": "a text"}])
    shown = shown_form(admin_client, subscription)
    assert shown["topic_patterns"] == '[{"not": "a text"}]'
    admin_client.post(change_page(subscription), {**shown, "topic_patterns": "a"})
    subscription.refresh_from_db()
    assert subscription.topic_patterns == ["a"]


def test_ticking_enabled_resets_a_tripped_circuit(admin_client: Client) -> None:
    subscription = make_subscription()
    trip(subscription)
    shown = shown_form(admin_client, subscription)
    assert "enabled" not in shown
    assert admin_client.post(change_page(subscription), {**shown, "enabled": "on"}).url == LIST
    subscription.refresh_from_db()
    assert (subscription.state, subscription.last_error) == ("active", "")
    assert subscription.consecutive_failures == 0


def test_clearing_enabled_pauses(admin_client: Client) -> None:
    subscription = make_subscription()
    shown = shown_form(admin_client, subscription)
    del shown["enabled"]
    admin_client.post(change_page(subscription), shown)
    subscription.refresh_from_db()
    assert subscription.state == "paused"


def test_a_form_that_was_open_during_the_trip_does_not_undo_it(admin_client: Client) -> None:
    subscription = make_subscription(name="before")
    shown = shown_form(admin_client, subscription)
    trip(subscription)
    admin_client.post(change_page(subscription), {**shown, "name": "after"})
    subscription.refresh_from_db()
    assert (subscription.name, subscription.state) == ("after", "tripped")
    assert subscription.last_error


def test_of_two_who_edit_neither_undoes_what_the_other_changed(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    configure(topic_groups={"alerts": ("alert.*", "alarm.*")})
    subscription = make_subscription(topic_patterns=["order.*"])
    shown = shown_form(admin_client, subscription)
    page = admin_client.get(change_page(subscription)).content.decode()
    assert {"initial-url", "initial-topic_patterns", "initial-headers"} <= set(
        re.findall(r'<input type="hidden" name="(initial-[a-z_]+)"', page)
    )
    url = "https://example.com/moved"
    first = {**shown, "url": url, "topic_patterns": "order.*\ninvoice.>", "groups": ["alerts"]}
    assert admin_client.post(change_page(subscription), first).status_code == 302
    second = {**shown, "max_in_flight": "3", "headers": '{"X-Team": "blue"}'}
    assert admin_client.post(change_page(subscription), second).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.url, subscription.max_in_flight) == (url, 3)
    assert subscription.headers == {"X-Team": "blue"}
    assert subscription.topic_patterns == ["order.*", "invoice.>", "alert.*", "alarm.*"]


def test_what_two_have_changed_is_refused_once(admin_client: Client) -> None:
    subscription = make_subscription(topic_patterns=["order.*"], max_in_flight=10)
    shown = shown_form(admin_client, subscription)
    first = {**shown, "topic_patterns": "order.*\ninvoice.>", "max_in_flight": "4"}
    admin_client.post(change_page(subscription), first)
    second = {**shown, "topic_patterns": "audit.>", "max_in_flight": "5"}
    response = admin_client.post(change_page(subscription), second)
    form = response.context["adminform"].form
    assert "It is now: order.*, invoice.&gt;. Save again" in str(form.errors["topic_patterns"])
    assert "It is now: 4. Save again" in str(form.errors["max_in_flight"])
    subscription.refresh_from_db()
    assert subscription.topic_patterns == ["order.*", "invoice.>"]
    assert subscription.max_in_flight == 4
    assert admin_client.post(change_page(subscription), filled(form)).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.topic_patterns, subscription.max_in_flight) == (["audit.>"], 5)


def test_a_change_without_the_hidden_field_means_what_it_says(admin_client: Client) -> None:
    subscription = make_subscription()
    sent = fields()
    del sent["enabled"]
    admin_client.post(change_page(subscription), sent)
    subscription.refresh_from_db()
    assert subscription.state == "paused"


@pytest.mark.parametrize("headers", ["", "null", "[]", "7", "[" * 100_000])
def test_headers_are_cleared_or_refused_by_the_change_form(
    admin_client: Client, headers: str, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = make_subscription(headers={"X-Team": "blue"})
    sent = {**shown_form(admin_client, subscription), "headers": headers}
    response = admin_client.post(change_page(subscription), sent)
    taken = headers in ("", "null")
    assert response.status_code == (302 if taken else 200)
    subscription.refresh_from_db()
    assert subscription.headers == ({} if taken else {"X-Team": "blue"})
    assert subscription.url not in caplog.text


@pytest.mark.parametrize("patterns", ["[" * 100_000, '["a", null]', "\0"])
def test_patterns_that_are_none_are_refused_by_the_form(
    admin_client: Client, patterns: str
) -> None:
    response = admin_client.post(f"{LIST}add/", fields(topic_patterns=patterns))
    assert response.status_code == 200
    assert not Subscription.objects.exists()


def test_a_name_that_is_invalid_is_not_also_called_taken(admin_client: Client) -> None:
    make_subscription(name="billing")
    response = admin_client.post(f"{LIST}add/", fields(name="billing\u200b", url="ftp://x"))
    errors = response.context["adminform"].form.errors
    assert "already exists" not in str(errors["name"])
