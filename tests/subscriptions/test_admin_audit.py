"""The audit in the admin: read by those who may, narrowed by indexes, changed by nobody."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from subscriptions import audit, circuit
from subscriptions.circuit import Report, tally
from subscriptions.models import AuditEntry, Subscription
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

LIST = "/admin/subscriptions/auditentry/"


@pytest.fixture
def viewer(client: Client) -> Client:
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_auditentry"))
    client.force_login(user)
    return client


def text(client: Client, **asked: str) -> str:
    response = client.get(LIST, asked)
    assert response.status_code == 200
    return response.content.decode()


def trip(subscription: Subscription) -> None:
    report = Report(
        subscription.pk, 0, tally([False] * 5), error="<b>out</b>", failed=True, answered=True
    )
    with transaction.atomic():
        circuit.record([report])


def test_the_list_is_narrowed_by_action_via_and_subscription(viewer: Client) -> None:
    billing, other = make_subscription(name="billing"), make_subscription(name="other")
    with audit.acting("alice", "api"):
        circuit.pause([billing.pk])
    trip(other)
    everything = text(viewer)
    for part in ("alice (API)", "billing", "other", "Tripped", "5 of 5 failures in a row"):
        assert part in everything
    assert "<b>out</b>" not in everything
    assert "billing" not in text(viewer, action__exact="tripped")
    assert "alice" in text(viewer, via__exact="api")
    assert "alice" not in text(viewer, via__exact="system")
    assert "alice" not in text(viewer, subscription=str(other.pk))
    assert "alice" not in text(viewer, subscription="no id")


def test_an_entry_is_shown_and_cannot_be_changed(viewer: Client, admin_client: Client) -> None:
    subscription = make_subscription(name="billing")
    trip(subscription)
    AuditEntry.objects.update(notice_error="mail: Connection refused", notice_attempts=2)
    entry = AuditEntry.objects.get(action="tripped")
    page = reverse("admin:subscriptions_auditentry_change", args=[entry.pk])
    shown = viewer.get(page).content.decode()
    assert "Connection refused" in shown
    assert "first_failure_at" in shown
    assert admin_client.post(page, {}).status_code == 403
    assert admin_client.post(f"{LIST}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get(f"{LIST}add/").status_code == 403


def test_without_the_permission_it_is_not_seen(client: Client) -> None:
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    assert client.get(LIST).status_code == 403


def test_an_entry_of_a_deleted_subscription_is_shown(viewer: Client) -> None:
    subscription = make_subscription(name="billing")
    key = str(subscription.pk)
    subscription.delete()
    assert text(viewer, subscription=key).count("billing") > 1


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"action__exact": "changed"},
        {"via__exact": "code"},
        {"since": "1h"},
        {"action__exact": "changed", "via__exact": "code"},
    ],
)
def test_all_entries_can_be_paged_through_and_nothing_is_counted(
    viewer: Client, asked: dict[str, str]
) -> None:
    make_subscription()
    written = set(audit.record("changed", [audit.Entry() for _ in range(1000)]))
    seen: list[int] = []
    address, pages = f"{LIST}?{urlencode(asked)}", 0
    while address:
        with CaptureQueriesContext(connection) as queries:
            response = viewer.get(address)
        assert len(queries) < 8
        assert not any("COUNT(" in query["sql"] for query in queries)
        seen += [entry.pk for entry in response.context["cl"].result_list]
        pages += 1
        older = response.context["cl"].paginator.older
        address = f"{LIST}{older}" if older and pages < 5 else ""
    assert len(seen) == len(set(seen)) == 5 * 50
    assert seen == sorted(seen, reverse=True)
    assert set(seen) <= written | set(AuditEntry.objects.values_list("pk", flat=True))


def test_what_names_nothing_is_said(viewer: Client) -> None:
    assert "There is no subscription" in text(viewer, subscription="no id")
    assert "is not a time" in text(viewer, since="yesterday")
    assert viewer.get(LIST, {"before": "nonsense"}, follow=True).status_code in (200, 400)
