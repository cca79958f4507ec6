"""Each role over each page and each act: allowed, or refused and not offered."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.test import Client
from django.utils import timezone

from deliveries import publish
from deliveries.admin.acts import ACTS
from deliveries.models import Attempt, Delivery
from deliveries.roles import ADMINISTRATOR, OPERATOR, ROLES, VIEWER
from subscriptions.models import AuditEntry, Subscription
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

LIST = "/admin/subscriptions/subscription/"
ACTIONS = {
    "reset_circuit": "reset",
    "pause": "pause",
    "resume": "pause",
    "replay": "replay",
    "send_test": "test",
    "rotate_secret": "rotate",
    "delete_selected": "delete",
}
# The pages of one subscription, and the permission that each needs.
PAGES = {
    **{act.name.replace("_", "-"): act.permission for act in ACTS.values()},
    "rotate-secret": "rotate",
    "change": "view",
    "delete": "delete",
    "history": "view",
}


def may(role: str | None, verb: str) -> bool:
    return role is not None and f"subscriptions.{verb}_subscription" in ROLES[role]


@pytest.fixture(params=[None, VIEWER, OPERATOR, ADMINISTRATOR])
def role(request: pytest.FixtureRequest, client: Client) -> str | None:
    user = User.objects.create_user("alice", is_staff=True)
    if request.param:
        user.groups.add(Group.objects.get(name=request.param))
    client.force_login(user)
    name: str | None = request.param
    return name


@pytest.mark.parametrize(("page", "verb"), PAGES.items())
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_page_is_for_those_who_may(
    client: Client, role: str | None, page: str, verb: str, method: str
) -> None:
    if (page, method) == ("change", "post"):
        verb = "change"
    if (page, method) == ("history", "post"):
        return
    subscription = make_subscription()
    response = getattr(client, method)(f"{LIST}{subscription.pk}/{page}/")
    assert (response.status_code != 403) == may(role, verb)


@pytest.mark.parametrize("page", ["", "add/"])
def test_the_list_and_the_form_for_a_new_one(client: Client, role: str | None, page: str) -> None:
    allowed = may(role, "add" if page else "view")
    assert client.get(LIST + page).status_code == (200 if allowed else 403)


def test_resetting_the_fuse_is_for_administrators(client: Client, role: str | None) -> None:
    expected = 200 if role == ADMINISTRATOR else 403
    assert client.get(f"{LIST}reset-fuse/").status_code == expected


@pytest.mark.parametrize(("action", "verb"), ACTIONS.items())
def test_an_action_of_the_list_is_offered_to_those_who_may_and_to_nobody_else(
    client: Client, role: str | None, action: str, verb: str
) -> None:
    subscription = make_subscription()
    if not may(role, "view"):
        return
    choices = client.get(LIST).context["action_form"]
    offered = [] if choices is None else [name for name, _ in choices.fields["action"].choices]
    assert (action in offered) == may(role, verb)
    sent = {"action": action, "_selected_action": [str(subscription.pk)]}
    response = client.post(LIST, sent)
    shown = response.status_code == 200 and "action_checkbox_name" in (response.context or {})
    if action != "delete_selected":
        assert shown == may(role, verb)
    confirmed = {**sent, "confirmed": "1", "old_secret": "0", "held": "send"}
    if not may(role, verb):
        client.post(LIST, {**confirmed, "shown_with": subscription.secrets.get().pk})
        assert not AuditEntry.objects.exclude(action="created").exists()


def test_buttons_are_those_of_the_role(client: Client, role: str | None) -> None:
    subscription = make_subscription()
    if not may(role, "view"):
        return
    page = client.get(f"{LIST}{subscription.pk}/change/").content.decode()
    for act in ACTS.values():
        button = f"/{subscription.pk}/{act.name.replace('_', '-')}/"
        assert (button in page) == (may(role, act.permission) and "active" in act.states)
    assert ("rotate-secret/" in page) == may(role, "rotate")


def test_who_may_not_pause_cannot_by_the_form_either(client: Client) -> None:
    user = User.objects.create_user("bob", is_staff=True)
    group = Group.objects.get(name=ADMINISTRATOR)
    group.permissions.remove(*group.permissions.filter(codename="pause_subscription"))
    user.groups.add(group)
    client.force_login(user)
    subscription = make_subscription()
    form = client.get(f"{LIST}{subscription.pk}/change/").context["adminform"].form
    assert "enabled" not in form.fields
    assert Subscription.objects.get().enabled


# Of history: what there is, and the permission that each page needs.
HISTORY = "/admin/deliveries/"
DELIVERY_PAGES = {
    "change": "view_delivery",
    "resend": "resend_delivery",
    "discard": "discard_delivery",
}


def allowed(role: str | None, permission: str) -> bool:
    return role is not None and permission in ROLES[role]


@pytest.fixture
def attempt() -> Attempt:
    """Of a delivery that failed; another one is pending."""
    make_subscription()
    publish("test.one", {})
    Delivery.objects.update(status="failed", next_attempt_at=None, finished_at=timezone.now())
    publish("test.two", {})
    return Attempt.objects.create(
        delivery=Delivery.objects.earliest("id"), number=1, outcome="http", status_code=503,
        started_at=timezone.now(),
    )  # fmt: skip


@pytest.mark.parametrize(("page", "permission"), DELIVERY_PAGES.items())
@pytest.mark.parametrize("method", ["get", "post"])
def test_a_page_of_a_delivery_is_for_those_who_may(
    client: Client, role: str | None, attempt: Attempt, page: str, permission: str, method: str
) -> None:
    address = f"{HISTORY}delivery/{attempt.delivery_id}/{page}/"
    expected = 200 if allowed(role, f"deliveries.{permission}") else 403
    if (page, method) == ("change", "post"):
        expected = 403
    assert getattr(client, method)(address).status_code == expected
    assert sorted(Delivery.objects.values_list("status", flat=True)) == ["failed", "pending"]


@pytest.mark.parametrize("page", ["delivery", "attempt", "event"])
def test_history_is_for_those_who_may_view_it(
    client: Client, role: str | None, attempt: Attempt, page: str
) -> None:
    expected = 200 if allowed(role, f"deliveries.view_{page}") else 403
    keys = {"delivery": attempt.delivery_id, "attempt": attempt.pk}
    key = keys.get(page, attempt.delivery.event_id)
    assert client.get(f"{HISTORY}{page}/").status_code == expected
    assert client.get(f"{HISTORY}{page}/{key}/change/").status_code == expected
    for verb in ("add", f"{key}/delete"):
        assert client.get(f"{HISTORY}{page}/{verb}/").status_code == 403


def test_whom_a_topic_reaches_is_for_those_who_may_view_subscriptions(
    client: Client, role: str | None
) -> None:
    reach = f"{HISTORY}event/reach/"
    assert client.get(reach).status_code == (200 if may(role, "view") else 403)
    assert (f'href="{reach}"' in client.get("/admin/").content.decode()) == may(role, "view")


@pytest.mark.parametrize(("action", "status"), [("resend", "failed"), ("discard", "pending")])
def test_deliveries_are_sent_again_and_discarded_by_those_who_may(
    client: Client, role: str | None, attempt: Attempt, action: str, status: str
) -> None:
    """By the button of one's page, and by the action of the list."""
    expected = allowed(role, f"deliveries.{action}_delivery")
    one = Delivery.objects.get(status=status)
    page = client.get(f"{HISTORY}delivery/{one.pk}/change/").content.decode()
    assert (f"/{one.pk}/{action}/" in page) == expected
    if allowed(role, "deliveries.view_delivery"):
        choices = client.get(f"{HISTORY}delivery/").context["action_form"]
        offered = [] if choices is None else [name for name, _ in choices.fields["action"].choices]
        assert (action in offered) == expected
        sent = {"action": action, "_selected_action": [one.pk], "confirmed": "1"}
        client.post(f"{HISTORY}delivery/", sent)
        after = Delivery.objects.get(pk=one.pk).status
        assert (after == {"resend": "pending", "discard": "discarded"}[action]) == expected


def test_an_event_says_only_what_its_reader_may_see(client: Client, attempt: Attempt) -> None:
    user = User.objects.create_user("carol", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_event"))
    client.force_login(user)
    address = f"{HISTORY}event/{attempt.delivery.event_id}/change/"
    page = client.get(address).content.decode()
    assert "test.one" in page
    assert "Where it" not in page
