"""Claims that cross each other."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from deliveries import claims, publish
from deliveries.bodies import EventBodies
from deliveries.claims import claim
from deliveries.models import Attempt, Lane
from deliveries.receiver import Receiver
from deliveries.sending import Sender
from tests.factories import make_subscription, statuses

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_wake_up_is_not_lost_on_a_claim_that_finds_nothing_and_is_about_to_leave(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {"n": 1})
    read, leave, left = claims._take_singly, claims._leave, []

    def after_somebody_else_took_it(cursor: Any, lanes: dict[Any, Any], *others: Any) -> None:
        for lane in lanes.values():
            lane.deliveries.clear()
        read(cursor, lanes, *others)

    def after_a_wake_up(cursor: Any, ids: Any, token: uuid.UUID) -> Any:
        left.append(token)
        monkeypatch.setattr(claims, "_take_singly", read)
        publish("test.one", {"n": 2})
        crossing = claim(ids, EventBodies(), str, token=uuid.uuid4(), failing_too=False)
        assert crossing.lanes == []
        return leave(cursor, ids, token)

    monkeypatch.setattr(claims, "_take_singly", after_somebody_else_took_it)
    monkeypatch.setattr(claims, "_leave", after_a_wake_up)
    sender.serve([subscription.pk], recovering=False)
    assert len(left) == 1
    assert statuses(subscription) == {"succeeded": 2}


def test_a_lane_with_nothing_due_is_not_even_taken(sender: Sender, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url)
    sender.serve([subscription.pk], recovering=False)
    assert not Lane.objects.exists()


def test_a_claim_that_fails_takes_nothing_along(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one subscription, the others of the batch wait for no lease."""
    bad, good = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    publish("test.one", {})
    read = claims._lane

    def fails_for_one(row: Any, decrypt: Any) -> Any:
        if row.subscription_id == bad.pk:
            raise RuntimeError("a mistake of our own")
        return read(row, decrypt)

    with monkeypatch.context() as broken:
        broken.setattr(claims, "_lane", fails_for_one)
        sender.serve([bad.pk, good.pk], recovering=False)
    assert (statuses(bad), statuses(good)) == ({"pending": 1}, {"succeeded": 1})
    sender.serve([bad.pk], recovering=False)
    assert statuses(bad) == {"succeeded": 1}
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"success"}
