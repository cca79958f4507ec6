"""What happens to a lane and its deliveries while requests are in flight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError
from django.db.models import F
from django.utils import timezone

from deliveries import NewEvent, publish, publish_many
from deliveries.claiming import claimer
from deliveries.models import Attempt, Delivery, Lane
from deliveries.sending import sender as sending
from deliveries.sending.sender import Sender
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.deliveries.conftest import Script
from tests.deliveries.sending import (
    Send,
    held_request,
    publish_numbered,
    the_delivery,
)
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize("answer", [200, 500])
def test_a_result_that_is_settled_twice_counts_once(
    sender: Sender,
    receiver: Receiver,
    script: Script,
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    answer: int,
) -> None:
    """The commit's answer is lost, and meanwhile another worker counts failures."""
    configure(quick_retries=())
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.answers = [Answer(answer)]
    settle = sending.settle

    def lose_the_answer(*items: Any, **more: Any) -> Any:
        settle(*items, **more)
        Subscription.objects.update(consecutive_failures=F("consecutive_failures") + 1)
        monkeypatch.setattr(sending, "settle", settle)
        raise OperationalError("the connection was lost with the commit's answer")

    monkeypatch.setattr(sending, "settle", lose_the_answer)
    sender.serve([subscription.pk], recovering=True)
    assert Attempt.objects.count() == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == (1 if answer == 200 else 2)


@pytest.fixture
def stale_at_once(configure: Callable[..., None]) -> None:
    """Each answer finds the claim too old to begin another request."""
    configure(time_slice=0.0)


def test_a_pause_while_a_request_is_in_flight_keeps_its_result(
    sender: Sender, ordered: list[Any], stale_at_once: None
) -> None:
    with held_request(sender) as (subscription, let_go):
        circuit.pause([subscription.pk])
        assert statuses(subscription) == {"held": 2}
        let_go()
    assert statuses(subscription) == {"succeeded": 1, "held": 1}
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_deletion_while_a_request_is_in_flight_leaves_the_truth(
    sender: Sender, ordered: list[Any], stale_at_once: None
) -> None:
    with held_request(sender) as (subscription, let_go):
        key = subscription.pk
        subscription.delete()
        found = Delivery.objects.filter(subscription_id=key)
        assert {one.status for one in found} == {"discarded"}
        assert {one.last_error for one in found} == {"its subscription was deleted"}
        let_go()
    assert sorted(one.status for one in found.all()) == ["discarded", "succeeded"]
    assert not Lane.objects.exists()


def test_a_failure_that_comes_back_after_a_new_url_does_not_count(
    sender: Sender, ordered: list[Any]
) -> None:
    with held_request(sender, status=404) as (subscription, let_go):
        subscription.url = "http://127.0.0.1:9/"
        subscription.save()
        let_go()
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 0
    assert not subscription.last_error.startswith("404")
    assert statuses(subscription)["failed"] == 1


def test_an_expired_lease_is_an_attempt_of_unknown_outcome_and_sent_again(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    past = timezone.now() - timedelta(seconds=1)
    Delivery.objects.update(lease_until=past)
    Lane.objects.create(subscription=subscription, lease_until=past)
    send(subscription)
    assert the_delivery().status == "succeeded"
    assert the_delivery().attempt_count == 2
    assert [(one.number, one.outcome) for one in Attempt.objects.order_by("number")] == [
        (1, "unknown"),
        (2, "success"),
    ]


def test_a_lane_that_somebody_serves_is_left_to_him_and_marked(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    Lane.objects.create(
        subscription=subscription, lease_until=timezone.now() + timedelta(seconds=60)
    )
    send(subscription)
    assert len(receiver.received) == 0
    assert Lane.objects.get().wake_again


def test_twenty_tasks_for_one_subscription_send_each_event_once(
    sender: Sender, receiver: Receiver, at_once: Callable[..., list[Any]]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish_numbered(100)
    at_once(lambda _: sender.serve([subscription.pk], recovering=True), 20)
    assert statuses(subscription) == {"succeeded": 100}
    assert len(receiver.received) == 100


def test_a_result_that_the_database_refuses_ends_alone(
    send: Send, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sending.judge_response

    def spoil(answer: Any) -> Any:
        from dataclasses import replace

        judged = real(answer)
        return replace(judged, response_body="a\x00b") if spoiled.pop() else judged

    spoiled = [False] * 5 + [True] + [False] * 4
    monkeypatch.setattr(sending, "judge_response", spoil)
    subscription = make_subscription(url=receiver.url)
    publish_numbered(10)
    send(subscription)
    assert statuses(subscription) == {"succeeded": 9, "failed": 1}
    assert "could not be recorded" in Delivery.objects.get(status="failed").last_error


def test_a_slice_that_is_over_gives_the_others_their_turn(
    sender: Sender,
    configure: Callable[..., None],
    script: Script,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(time_slice=0.1)
    busy = make_subscription(url=receiver.url, max_in_flight=1, topic_patterns=["busy"])
    publish_many([NewEvent(topic="busy", payload={"n": n}) for n in range(20)])
    script.always = Answer(200, delay=0.03)
    claims: list[list[UUID]] = []
    claim = claimer.claim

    def note(ids: list[UUID], *others: Any, **more: Any) -> Any:
        claims.append(list(ids))
        return claim(ids, *others, **more)

    monkeypatch.setattr(claimer, "claim", note)
    sender.serve([busy.pk], recovering=False)
    assert statuses(busy) == {"succeeded": 20}
    assert len(claims) > 2, "the lane was released and claimed again"
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_sender_that_stops_finishes_what_is_in_flight_and_begins_nothing(
    sender: Sender, ordered: list[Any]
) -> None:
    with held_request(sender) as (subscription, let_go):
        sender.stop()
        let_go()
    assert statuses(subscription) == {"succeeded": 1, "pending": 1}
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_row_that_somebody_locks_does_not_hold_up_the_others(
    sender: Sender, receiver: Receiver, at_once: Callable[..., list[Any]]
) -> None:
    from django.db import transaction

    locked, other = (make_subscription(url=receiver.url) for _ in range(2))
    publish("test.one", {})
    with transaction.atomic():
        Subscription.objects.select_for_update().get(pk=locked.pk)
        thread = threading.Thread(
            target=sender.serve, args=([locked.pk, other.pk],), kwargs={"recovering": True}
        )
        thread.start()
        waiting = threading.Event()
        while statuses(other) != {"succeeded": 1}:
            assert not waiting.wait(0.01)
        assert statuses(locked) == {"pending": 1}
    thread.join(20)
    assert statuses(locked) == {"succeeded": 1}
    assert len(receiver.received) == 2


def test_a_delivery_of_which_nothing_can_be_written_does_not_take_the_others_along(
    send: Callable[..., None], receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(5)])
    first = Delivery.objects.order_by("id")[0]
    Delivery.objects.filter(pk=first.pk).update(attempt_count=2**31 - 1)
    send(subscription)
    assert statuses(subscription) == {"pending": 1, "succeeded": 4}
    assert Delivery.objects.get(pk=first.pk).status == "pending"


def test_a_row_that_stays_locked_keeps_no_success_from_being_written(
    sender: Sender, receiver: Receiver
) -> None:
    """Else its lease would end, and it would be sent again and again while the lock lasts."""
    from django.db import transaction

    locked = make_subscription(url=receiver.url)
    publish("test.one", {})
    with transaction.atomic():
        Subscription.objects.select_for_update().get(pk=locked.pk)
        thread = threading.Thread(
            target=sender.serve, args=([locked.pk],), kwargs={"recovering": True}
        )
        thread.start()
        eventually(lambda: statuses(locked) == {"succeeded": 1})
    thread.join(20)
    assert len(receiver.received) == 1
