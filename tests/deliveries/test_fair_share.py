"""A subscription that comes while others have much to send waits for little."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from deliveries import NewEvent, publish, publish_many
from deliveries.claiming import claimer as claiming
from deliveries.models import Delivery
from deliveries.sending import sender as sending
from deliveries.sending.sender import Sender
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("ordered")]


def many(count: int, topic: str = "test.one") -> list[NewEvent]:
    return [NewEvent(topic=topic, payload={"n": n}) for n in range(count)]


def test_claims_are_for_fewer_subscriptions_where_each_has_more(
    sender: Sender, send: Callable[..., None], receiver: Receiver
) -> None:
    claimer = sender._claimers[True]
    crowd = [make_subscription(url=receiver.url) for _ in range(60)]
    assert claimer.wait_for_room() > 200
    publish_many(many(25))
    send(*crowd)
    assert claiming.DELIVERIES_AT_ONCE / 25 <= claimer.wait_for_room() < 40
    for _ in range(3):
        publish("test.one", {})
        send(*crowd)
    assert claimer.wait_for_room() > 200
    assert Delivery.objects.filter(status="succeeded").count() == 60 * 28


def test_while_answers_wait_for_the_transport_a_lane_has_one_request_in_flight(
    sender: Sender,
    send: Callable[..., None],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(type(sender.transport), "is_behind", lambda _: True)
    in_flight: list[int] = []
    sent = Sender._send

    def counted(self: Sender, lane: Any, delivery: Any) -> None:
        in_flight.append(lane.in_flight)
        sent(self, lane, delivery)

    monkeypatch.setattr(Sender, "_send", counted)
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_many(many(30))
    send(subscription)
    assert statuses(subscription) == {"succeeded": 30}
    assert set(in_flight) == {1}


def test_many_lanes_at_once_are_all_begun_and_settled(
    sender: Sender, send: Callable[..., None], receiver: Receiver
) -> None:
    crowd = [make_subscription(url=receiver.url) for _ in range(2 * sending.IN_A_ROW + 7)]
    publish_many(many(3))
    ids: list[UUID] = [one.pk for one in crowd]
    send(*crowd)
    assert Delivery.objects.filter(status="succeeded", subscription__in=ids).count() == 3 * len(ids)
