"""Each role over each page and each act: allowed, or refused and not offered."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client
from django.utils import timezone

from deliveries import publish
from deliveries.admin.acts import ACTS
from deliveries.models import Delivery
from deliveries.roles import ADMINISTRATOR, OPERATOR, ROLES, VIEWER
from subscriptions.models import AuditEntry, Subscription
from tests.factories import make_subscription

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.filterwarnings("ignore:No directory at:UserWarning"),
]

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


@pytest.mark.parametrize("method", ["get", "post"])
def test_a_delivery_is_sent_again_by_those_who_may(
    client: Client, role: str | None, method: str
) -> None:
    make_subscription()
    publish("test.one", {})
    delivery = Delivery.objects.get()
    Delivery.objects.update(status="failed", next_attempt_at=None, finished_at=timezone.now())
    allowed = role is not None and "deliveries.resend_delivery" in ROLES[role]
    page = client.get(f"/admin/deliveries/delivery/{delivery.pk}/change/")
    assert ("Send again</button>" in page.content.decode()) is allowed
    answer = getattr(client, method)(f"/admin/deliveries/delivery/{delivery.pk}/replay/")
    assert answer.status_code == (405 if method == "get" else 302 if allowed else 403)
    delivery.refresh_from_db()
    assert delivery.status == ("pending" if allowed and method == "post" else "failed")
