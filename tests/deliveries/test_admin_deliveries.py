"""What an operator does to deliveries asks first, and says what was done."""

from __future__ import annotations

import html
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client
from django.utils import timezone

from deliveries import publish
from deliveries.admin import history as module
from deliveries.keeping import replay as replaying
from deliveries.keeping.replay import Chosen, replay_chosen
from deliveries.models import Delivery
from subscriptions import audit
from tests.deliveries.in_the_admin import DELIVERIES, attempted, text
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db


def act(client: Client, action: str, *chosen: int, **fields: str) -> Any:
    return client.post(
        DELIVERIES, {"action": action, "_selected_action": [str(one) for one in chosen], **fields}
    )


def acted(client: Client, action: str, *chosen: int) -> list[str]:
    response = act(client, action, *chosen, confirmed="1")
    assert response.status_code == 302
    return [str(message) for message in get_messages(response.wsgi_request)]


def test_sending_again_says_what_is_sent_held_and_left_alone(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    tripped = make_subscription(topic_patterns=["other"])
    publish("other", {})
    finish("failed")
    trip(tripped)
    publish("test.created", {})
    chosen = list(Delivery.objects.values_list("pk", flat=True))
    asked = html.unescape(act(admin_client, "resend", *chosen).content.decode())
    assert "4 deliveries are sent again" in asked
    assert "1 of those chosen is pending or held already" in asked
    assert Delivery.objects.filter(status="failed").count() == 4
    assert acted(admin_client, "resend", *chosen) == [
        "3 deliveries will be sent again now. 1 delivery is held until the subscription is active "
        "again. 1 delivery was left as it is: open already, or the subscription was deleted or is "
        "not for all tenants now.",
    ]
    assert Delivery.objects.filter(status="pending").count() == 4


def test_discarding_deliveries_asks_first_and_can_be_taken_back(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    one, two = deliveries[:2]
    finish("succeeded", pk=two.pk)
    address = f"{DELIVERIES}{one.pk}/discard/"
    assert "1 delivery is discarded, and not sent." in text(admin_client, address)
    assert Delivery.objects.get(pk=one.pk).status == "pending"
    assert "Nothing to do" in text(admin_client, f"{DELIVERIES}{two.pk}/discard/")
    assert acted(admin_client, "discard", one.pk, two.pk) == [
        "1 delivery was discarded. 1 delivery was left as it is: finished already."
    ]
    page = f"{DELIVERIES}{one.pk}/change/"
    assert "discarded by an operator. It can be sent again." in text(admin_client, page)
    assert (
        admin_client.post(f"{DELIVERIES}{one.pk}/resend/", {"confirmed": "1"})["Location"] == page
    )
    assert Delivery.objects.get(pk=one.pk).status == "pending"
    told = text(admin_client, page)
    assert told.index("Discarded") < told.index("Sent again") < told.index("Attempt 1 is due")
    assert told.count("By admin (Admin).") == 2


def test_a_replay_of_many_is_in_the_story_of_what_it_sent_again(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "wake", lambda _: 0)
    one = deliveries[0]
    attempted(one.pk, status_code=404)
    topic, since = one.event.topic, timezone.now() - timedelta(hours=1)
    wrong: list[dict[str, Any]] = [{"topic": "other"}, {"until": since}, {"since": timezone.now()}]
    for others in wrong:
        audit.record("replayed", [Chosen(one.subscription, ["failed"], **others).audited(0)])
    page = f"{DELIVERIES}{one.pk}/change/"
    assert "Sent again" not in text(admin_client, page)
    finish("failed")
    list(replay_chosen(Chosen(one.subscription, ["failed"], since=since, topic=topic)))
    told = text(admin_client, page)
    assert told.count("Sent again") == 1
    assert told.index("404 is not tried again") < told.index("Sent again")


def test_too_many_at_once_are_refused(
    admin_client: Client, deliveries: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REPLAYED", 2)
    ids = finish("failed")
    [message] = acted(admin_client, "resend", *ids)
    assert "nothing was done" in message
    assert not Delivery.objects.filter(status="pending").exists()


@pytest.mark.parametrize("key", ["9" * 23, "nonsense", "%00"])
def test_an_act_on_what_no_row_can_be_is_no_error(admin_client: Client, key: str) -> None:
    page = f"{DELIVERIES}{key}/resend/"
    assert admin_client.post(page, follow=True).status_code in (200, 404)


def test_an_action_is_for_what_was_chosen_whatever_the_list_shows_by_now(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    one, two = deliveries[:2]
    sent = {"action": "discard", "_selected_action": [one.pk], "confirmed": "1"}
    for address in ("?status__exact=failed", "?since=yesterday"):
        assert admin_client.post(DELIVERIES + address, sent).status_code == 302
    assert Delivery.objects.get(pk=one.pk).status == "discarded"
    admin_client.post(DELIVERIES, {**sent, "_selected_action": [two.pk], "select_across": "1"})
    assert set(Delivery.objects.exclude(pk=one.pk).values_list("status", flat=True)) == {"pending"}


@pytest.mark.parametrize("chosen", ["nonsense", "9" * 30, "\0"])
def test_an_action_on_what_is_no_id_does_nothing(admin_client: Client, chosen: str) -> None:
    response = admin_client.post(
        DELIVERIES, {"action": "resend", "_selected_action": [chosen]}, follow=True
    )
    assert response.status_code == 200
