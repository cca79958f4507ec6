"""Two people, or one twice, at the same moment: each gets a page that says what became of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client

from subscriptions.models import AuditEntry, Subscription
from tests.factories import make_subscription
from tests.subscriptions.in_the_admin import LIST, change_page, fields, shown_form

pytestmark = pytest.mark.django_db(transaction=True)

AtOnce = Callable[..., list[Any]]
TAKEN = "The tenant has a subscription with this name already."


def test_a_name_is_given_once(admin_client: Client, at_once: AtOnce) -> None:
    for number in range(5):
        sent = fields(name=f"name {number}")
        pages = at_once(lambda _, sent=sent: admin_client.post(f"{LIST}add/", sent), 4)
        assert [page.status_code for page in pages] == [200] * 4
        assert sum(TAKEN in page.content.decode() for page in pages) == 3
    assert Subscription.objects.count() == 5


def test_two_are_not_renamed_to_one_name(admin_client: Client, at_once: AtOnce) -> None:
    for number in range(5):
        two = [make_subscription() for _ in range(2)]
        sent = [shown_form(admin_client, one) | {"name": f"name {number}"} for one in two]
        pages = at_once(
            lambda n, two=two, sent=sent: admin_client.post(change_page(two[n]), sent[n]), 2
        )
        assert sorted(page.status_code for page in pages) == [200, 302]


def test_what_is_saved_while_it_is_deleted_is_gone(admin_client: Client, at_once: AtOnce) -> None:
    for _ in range(5):
        one = make_subscription()
        page = change_page(one)
        saved = shown_form(admin_client, one) | {"max_in_flight": "3"}
        deletion = page.replace("/change/", "/delete/")
        posts = [(page, saved), (deletion, {"post": "yes"})]
        pages = at_once(lambda n, posts=posts: admin_client.post(*posts[n]), 2)
        assert [page.status_code for page in pages] == [302, 302]
        assert not Subscription.objects.exists()


def test_a_deletion_is_in_the_audit_once(admin_client: Client, at_once: AtOnce) -> None:
    for number in range(5):
        page = change_page(make_subscription()).replace("/change/", "/delete/")
        pages = at_once(lambda _, page=page: admin_client.post(page, {"post": "yes"}), 4)
        assert [page.status_code for page in pages] == [302] * 4
        assert AuditEntry.objects.filter(action="deleted").count() == number + 1
