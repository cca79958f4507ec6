"""What deliveries add to the admin of subscriptions."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db.models import QuerySet
from django.test import Client
from django.utils import timezone

from deliveries import publish
from deliveries.holding import hold
from deliveries.models import Attempt, Delivery, Lane
from deliveries.sending import send_test as send_test_module
from deliveries.transport import Transport
from subscriptions.models import Subscription, TripFuse
from tests.deliveries.conftest import LOOPBACK
from tests.deliveries.in_the_admin import DELIVERIES, SUBSCRIPTIONS, text
from tests.deliveries.test_commands import finish
from tests.factories import make_subscription, make_subscription_with_secret, statuses
from tests.subscriptions.test_commands import trip
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db


def test_the_list_of_subscriptions_counts_what_waits(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    tripped = make_subscription(topic_patterns=["other"])
    trip(tripped)
    publish("other", {})
    subscription = Subscription.objects.get(name="billing")
    page = text(admin_client, SUBSCRIPTIONS)
    assert f'subscription={subscription.pk}&status__exact=pending" title="">3</a> / 0' in page
    assert f'0 / <a href="{DELIVERIES}?subscription={tripped.pk}&status__exact=held"' in page


@pytest.fixture
def receiver(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    configure(allowed_networks=LOOPBACK)
    transport = Transport(timeout=2, allowed_networks=LOOPBACK)
    monkeypatch.setattr(send_test_module, "transport", lambda: transport)
    with Receiver(respond=lambda one: Answer(200 if "good" in one.header("X-Is") else 500)) as it:
        yield it
    transport.close(1)


def test_test_events_tell_their_answers(admin_client: Client, receiver: Receiver) -> None:
    good, secret = make_subscription_with_secret(
        name="good", url=receiver.url, headers={"X-Is": "good"}
    )
    bad = make_subscription(name="bad", url=receiver.url)
    trip(bad)
    response = admin_client.post(
        SUBSCRIPTIONS,
        {
            "action": "send_test",
            "_selected_action": [str(good.pk), str(bad.pk)],
            "confirmed": "1",
        },
    )
    answers = {str(one): tested.status_code for one, tested in response.context["answers"]}
    assert answers == {"bad": 500, "good": 200}
    told = response.content.decode()
    assert {one.topic for one in receiver.received} == {"webhooks.test"}
    assert secret not in str(told)
    assert not Attempt.objects.exists()


def test_the_button_sends_one_test_event(admin_client: Client, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url, headers={"X-Is": "good"})
    page = f"{SUBSCRIPTIONS}{subscription.pk}/"
    assert "Send a test event" in text(admin_client, f"{page}change/")
    assert "1 test event is sent now" in text(admin_client, f"{page}send-test/")
    assert receiver.count == 0
    response = admin_client.post(f"{page}send-test/", {"confirmed": "1"})
    told = response.content.decode()
    assert '<span class="chip chip-good">200</span>' in told
    assert f'href="{page}change/"' in told
    assert f'href="{page}reset/"' not in told
    assert receiver.count == 1


def test_a_test_event_that_succeeds_leads_to_the_reset_of_a_tripped_circuit(
    admin_client: Client, receiver: Receiver
) -> None:
    good = make_subscription(url=receiver.url, headers={"X-Is": "good"})
    bad = make_subscription(url=receiver.url)
    for one, leads in ((good, True), (bad, False)):
        trip(one)
        page = f"{SUBSCRIPTIONS}{one.pk}/"
        told = admin_client.post(f"{page}send-test/", {"confirmed": "1"}).content.decode()
        assert (f'href="{page}reset/"' in told) == leads


def test_too_many_test_events_are_refused(
    admin_client: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deliveries.admin.subscriptions.MAX_TESTS", 1)
    chosen = [make_subscription(url=receiver.url) for _ in range(2)]
    admin_client.post(
        SUBSCRIPTIONS,
        {
            "action": "send_test",
            "_selected_action": [str(c.pk) for c in chosen],
            "confirmed": "1",
        },
    )
    assert receiver.count == 0


# Backing off.


def back_off(subscription: Subscription) -> Lane:
    """As after three failed attempts, the last of which asked for four minutes."""
    return Lane.objects.create(
        subscription=subscription,
        failures=3,
        resume_at=timezone.now() + timedelta(minutes=4),
        backoff_reason="its answer asks for it: 503 Busy",
    )


def test_what_backs_off_says_until_when_and_why_wherever_it_is_shown(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    lane = back_off(subscription)
    assert lane.resume_at is not None
    told = f"acking off until {lane.resume_at:%Y-%m-%d %H:%M:%S} UTC, because its answer asks "
    for page in (
        DELIVERIES,
        f"{DELIVERIES}{deliveries[0].pk}/change/",
        SUBSCRIPTIONS,
        f"{SUBSCRIPTIONS}{subscription.pk}/change/",
    ):
        assert f"{told}for it: 503 Busy (3 failed attempts in a row)" in text(admin_client, page), (
            page
        )


def test_a_backoff_that_is_over_is_not_shown(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    back_off(Subscription.objects.get())
    Lane.objects.update(resume_at=timezone.now())
    for page in (DELIVERIES, SUBSCRIPTIONS):
        assert "acking off" not in text(admin_client, page)


def test_what_is_due_after_the_backoff_shows_its_own_time(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    back_off(Subscription.objects.get())
    Delivery.objects.update(next_attempt_at=timezone.now() + timedelta(hours=1, seconds=20))
    page = text(admin_client, DELIVERIES)
    assert page.count(">in 1 h</time>") == 3
    assert "acking off" not in page


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        (lambda one: one.update(enabled=False), "its subscription is paused"),
        (lambda one: one.delete(), "its subscription was deleted"),
    ],
)
def test_what_is_pending_although_nothing_is_sent_is_not_due_now(
    admin_client: Client, deliveries: list[Delivery], stop: Callable[[Any], Any], why: str
) -> None:
    """Until the sweep has held or discarded it."""
    stop(QuerySet(Subscription))
    Delivery.objects.update(
        status="pending", next_attempt_at=timezone.now(), finished_at=None, held_at=None
    )
    page = text(admin_client, DELIVERIES)
    assert page.count(f"none: {why}") == 3


def test_the_list_says_that_the_fuse_is_blown(admin_client: Client) -> None:
    assert "fuse" not in text(admin_client, SUBSCRIPTIONS)
    TripFuse.objects.update_or_create(pk=1, defaults={"blown_at": timezone.now()})
    assert "The fuse is blown since 20" in text(admin_client, SUBSCRIPTIONS)


# What ends deliveries says how many, and asks.


def test_discarding_asks_first_and_says_how_many(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription, other = Subscription.objects.get(), make_subscription(topic_patterns=["x"])
    trip(subscription)
    hold([subscription.pk])
    sent = {
        "action": "reset_circuit",
        "_selected_action": [str(subscription.pk), str(other.pk)],
    }
    response = admin_client.post(SUBSCRIPTIONS, sent)
    page = html.unescape(response.content.decode())
    assert "1 circuit is reset; 3 held deliveries will be sent or discarded" in page
    assert "billing: 3 held" in page
    assert "1 of those chosen is not tripped" in page
    assert statuses(subscription) == {"held": 3}
    response = admin_client.post(SUBSCRIPTIONS, {**sent, "confirmed": "1", "held": "discard"})
    assert [str(message) for message in get_messages(response.wsgi_request)] == [
        "1 circuit was reset. What was held is discarded.",
        "1 of those chosen was not tripped.",
    ]
    assert statuses(subscription) == {"discarded": 3}


def test_nothing_is_asked_where_nothing_is_tripped(admin_client: Client) -> None:
    subscription = make_subscription()
    response = admin_client.post(
        SUBSCRIPTIONS,
        {"action": "reset_circuit", "_selected_action": [str(subscription.pk)]},
    )
    assert "Nothing to do: it is not tripped." in response.content.decode()


def test_deleting_says_how_many_deliveries_are_discarded(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    finish("succeeded", timedelta(), pk=deliveries[0].pk)
    told = "ending and held deliveries, which are discarded (and stay listed): 2"
    assert told in text(admin_client, f"{SUBSCRIPTIONS}{subscription.pk}/delete/")
    response = admin_client.post(
        SUBSCRIPTIONS, {"action": "delete_selected", "_selected_action": [str(subscription.pk)]}
    )
    assert told in response.content.decode()
    assert Subscription.objects.exists()


def test_deleting_a_subscription_keeps_what_was_delivered(
    admin_client: Client, deliveries: list[Delivery]
) -> None:
    subscription = Subscription.objects.get()
    finish("succeeded", timedelta(), pk=deliveries[0].pk)
    admin_client.post(f"{SUBSCRIPTIONS}{subscription.pk}/delete/", {"post": "yes"})
    assert not Subscription.objects.exists()
    assert sorted(Delivery.objects.values_list("status", flat=True)) == [
        "discarded",
        "discarded",
        "succeeded",
    ]
