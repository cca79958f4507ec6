"""Secrets in the admin: shown once, rotated after a question."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.contrib.messages import get_messages
from django.test import Client

from subscriptions.models import AuditEntry, Subscription
from tests.factories import make_subscription
from tests.subscriptions.in_the_admin import (
    LIST,
    SECRET,
    change_page,
    fields,
)
from tests.subscriptions.test_commands import stored_secrets

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize(("choice", "live"), [("overlap", 2), ("0", 1)])
def test_a_rotated_secret_is_shown_once(admin_client: Client, choice: str, live: int) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    assert admin_client.get(page).status_code == 200
    assert subscription.secrets.count() == 1
    response = admin_client.post(page, {**rotation(admin_client, page), "old_secret": choice})
    found = SECRET.findall(html.unescape(response.content.decode()))
    assert len(found) == 1
    assert len(stored_secrets(subscription)) == live
    assert stored_secrets(subscription)[0] == found[0]
    assert "no-store" in response["Cache-Control"]
    shown = html.unescape(admin_client.get(change_page(subscription)).content.decode())
    assert not SECRET.search(shown)
    assert shown.count("Made ") == live
    assert (", ends " in shown) == (live == 2)


def rotation(client: Client, page: str) -> dict[str, Any]:
    """What a browser sends that opens the page now."""
    form = client.get(page).context["form"]
    return {bound.html_name: bound.value() for bound in form}


def test_a_reload_after_rotating_rotates_nothing(admin_client: Client) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    sent = rotation(admin_client, page)
    assert SECRET.search(html.unescape(admin_client.post(page, sent).content.decode()))
    after = stored_secrets(subscription)
    reloaded = admin_client.post(page, sent)
    assert stored_secrets(subscription) == after
    assert "Nothing was done" in reloaded.content.decode()
    assert not SECRET.search(html.unescape(reloaded.content.decode()))
    # The form that is shown then is for the secret that there is now.
    again = {bound.html_name: bound.value() for bound in reloaded.context["form"]}
    assert SECRET.search(html.unescape(admin_client.post(page, again).content.decode()))
    assert len(stored_secrets(subscription)) == 3


def test_a_secret_that_is_shown_has_a_button_that_copies_it(admin_client: Client) -> None:
    page = html.unescape(admin_client.post(f"{LIST}add/", fields()).content.decode())
    shown = re.search(r'x-ref="secret">(whsec_[^<]+)</code>\s*<button type="button"([^>]*)>', page)
    assert shown is not None
    assert stored_secrets(Subscription.objects.get()) == [shown[1]]
    assert "navigator.clipboard.writeText($refs.secret.textContent)" in shown[2]
    assert 'aria-label="Copy the secret of billing"' in shown[2]


def test_secrets_of_many_are_rotated_after_a_question_and_shown_once(admin_client: Client) -> None:
    first, second = make_subscription(name="a"), make_subscription(name="b", tenant="acme")
    other = make_subscription()
    second.rotate_secret()
    sent: dict[str, Any] = {
        "action": "rotate_secret",
        "_selected_action": [str(first.pk), str(second.pk)],
    }
    question = admin_client.post(LIST, sent)
    page = " ".join(question.content.decode().split())
    assert "2 new secrets are made and shown once. 3 secrets are valid now" in page
    assert "a: 1 valid now" in page
    assert "b (acme): 2 valid now" in page
    assert [one.secrets.count() for one in (first, second)] == [1, 2]
    sent |= {bound.html_name: bound.value() for bound in question.context["form"]}
    sent |= {"confirmed": "1", "old_secret": "0"}
    answer = admin_client.post(LIST, sent)
    page = html.unescape(answer.content.decode())
    new = [stored_secrets(one) for one in (first, second)]
    assert [len(live) for live in new] == [1, 1]
    assert "2 subscriptions have new signing secrets" in page
    # Once by itself, and once in the table to paste.
    assert page.count(f"a\t{new[0][0]}\n") == page.count(f"b (acme)\t{new[1][0]}\n") == 1
    assert Counter(SECRET.findall(page)) == {new[0][0]: 2, new[1][0]: 2}
    assert "no-store" in answer["Cache-Control"]
    assert other.secrets.count() == 1
    entries = AuditEntry.objects.filter(action="rotated", via="admin")
    assert {(entry.subscription_id, entry.actor) for entry in entries} == {
        (first.pk, "admin"), (second.pk, "admin"),
    }  # fmt: skip
    again = admin_client.post(LIST, sent)
    assert "Nothing was done" in again.content.decode()
    assert not SECRET.search(html.unescape(again.content.decode()))
    assert [stored_secrets(one) for one in (first, second)] == new


def test_more_secrets_than_a_person_hands_over_are_not_rotated_at_once(
    admin_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subscriptions.admin.subscriptions.MAX_ROTATED", 1)
    chosen = [str(make_subscription().pk) for _ in range(2)]
    sent = {"action": "rotate_secret", "_selected_action": chosen, "confirmed": "1"}
    response = admin_client.post(LIST, {**sent, "old_secret": "0", "shown_with": "0"})
    [message] = get_messages(response.wsgi_request)
    assert str(message) == "Choose at most 1 subscriptions at once; nothing was done."
    assert not AuditEntry.objects.filter(action="rotated").exists()


def test_no_secret_is_rotated_if_one_of_them_would_have_too_many(admin_client: Client) -> None:
    first, full = make_subscription(name="a"), make_subscription(name="b")
    for _ in range(9):
        full.rotate_secret()
    sent: dict[str, Any] = {
        "action": "rotate_secret",
        "_selected_action": [str(first.pk), str(full.pk)],
    }
    question = admin_client.post(LIST, sent)
    sent |= {bound.html_name: bound.value() for bound in question.context["form"]}
    response = admin_client.post(LIST, {**sent, "confirmed": "1", "old_secret": "overlap"})
    [message] = get_messages(response.wsgi_request)
    assert str(message).startswith("b: 10 secrets are in force, and no more may be.")
    assert [one.secrets.count() for one in (first, full)] == [1, 10]
    assert not AuditEntry.objects.filter(action="rotated", via="admin").exists()


def test_two_who_rotate_at_once_rotate_once(
    admin_client: Client, transactional_db: None, at_once: Callable[..., list[Any]]
) -> None:
    subscription = make_subscription()
    page = f"{LIST}{subscription.pk}/rotate-secret/"
    sent = rotation(admin_client, page)
    pages = at_once(lambda _: admin_client.post(page, sent).content.decode(), 4)
    assert sum("Nothing was done" in one for one in pages) == 3
    assert subscription.secrets.count() == 2


def test_a_reload_after_adding_adds_nothing_and_shows_no_secret(admin_client: Client) -> None:
    admin_client.post(f"{LIST}add/", fields())
    reloaded = admin_client.post(f"{LIST}add/", fields())
    assert "name" in reloaded.context["adminform"].form.errors
    assert not SECRET.search(html.unescape(reloaded.content.decode()))
    assert Subscription.objects.get().secrets.count() == 1


def test_rotating_without_a_choice_changes_nothing(admin_client: Client) -> None:
    subscription = make_subscription()
    response = admin_client.post(f"{LIST}{subscription.pk}/rotate-secret/", {})
    assert "This field is required" in response.content.decode()
    assert subscription.secrets.count() == 1


def test_who_may_only_look_changes_nothing(client: Client, configure: Callable[..., None]) -> None:
    configure(topic_groups={"orders": ("order.*",)})
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.add(Permission.objects.get(codename="view_subscription"))
    client.force_login(viewer)
    subscription = make_subscription(topic_patterns=["order.*"])
    assert client.get(LIST).status_code == 200
    page = client.get(change_page(subscription))
    assert page.status_code == 200
    assert "rotate-secret" not in page.content.decode()
    assert client.get(f"{LIST}{subscription.pk}/rotate-secret/").status_code == 403
    assert client.post(f"{LIST}{subscription.pk}/send-test/").status_code == 403
    assert "reset_circuit" not in client.get(LIST).content.decode()
    response = client.post(LIST, {"action": "pause", "_selected_action": [str(subscription.pk)]})
    assert response.status_code in (302, 403, 200)
    subscription.refresh_from_db()
    assert subscription.state == "active"


def test_an_unknown_subscription_leads_back_to_the_index(admin_client: Client) -> None:
    response = admin_client.get(f"{LIST}00000000-0000-7000-8000-000000000000/rotate-secret/")
    assert response.status_code == 302
