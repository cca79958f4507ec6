"""A subscription that comes while others have much to send waits for little."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from uuid import UUID

import pytest
from requests import PreparedRequest

from deliveries import NewEvent, publish, publish_many
from deliveries.claiming import claimer as claiming
from deliveries.claiming import claims
from deliveries.models import Delivery
from deliveries.sending import sender as sending
from deliveries.sending.sender import Sender
from deliveries.stage import FairStage
from deliveries.transport import Exchange
from deliveries.transport.jobs import Budget, Job
from deliveries.turns import Turns
from deliveries.values import ClaimedLane
from tests.factories import make_subscription
from webhooks_project.receiver import Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("ordered")]


def many(count: int, topic: str = "test.one") -> list[NewEvent]:
    return [NewEvent(topic=topic, payload={"n": n}) for n in range(count)]


def test_claims_are_for_fewer_subscriptions_where_each_has_more(
    sender: Sender, send: Callable[..., None], receiver: Receiver
) -> None:
    claimer = sender._claimers[True]
    crowd = [make_subscription(url=receiver.url) for _ in range(60)]
    assert claimer.wait_for_room() == claiming.DELIVERIES_AT_ONCE
    publish_many(many(25))
    send(*crowd)
    assert claiming.DELIVERIES_AT_ONCE // 25 <= claimer.wait_for_room() < 10
    for _ in range(5):
        publish("test.one", {})
        send(*crowd)
    assert claimer.wait_for_room() > 40
    assert Delivery.objects.filter(status="succeeded").count() == 60 * 30


def test_a_claim_is_for_a_bounded_number_of_deliveries(
    sender: Sender, send: Callable[..., None], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "MAX_ROWS", 60)
    claimed: list[int] = []

    def counted(lanes: list[ClaimedLane], recovering: bool) -> None:
        claimed.append(sum(len(lane.deliveries) for lane in lanes))
        sender._on_claimed(lanes, recovering)

    monkeypatch.setattr(sender._claimers[True], "_on_claimed", counted)
    crowd = [make_subscription(url=receiver.url) for _ in range(20)]
    publish_many(many(10))
    send(*crowd)
    assert claimed[0] == 60
    assert max(claimed) <= 60
    assert Delivery.objects.filter(status="succeeded").count() == 20 * 10


def test_owners_take_turns() -> None:
    turns: Turns[str] = Turns()
    for item in ["flood 1", "flood 2", "flood 3", "quiet 1", "flood 4", "quiet 2", "other 1"]:
        turns.put(item.split()[0], item)
    assert [turns.pop() for _ in range(7)] == [
        "flood 1", "quiet 1", "other 1", "flood 2", "quiet 2", "flood 3", "flood 4",
    ]  # fmt: skip
    assert not turns


def test_an_item_of_another_owner_is_in_the_next_batch_of_a_stage() -> None:
    """A thousand of one owner wait while the first of them is handled; each stays in its order."""
    batches: list[list[str]] = []
    began, go_on = threading.Event(), threading.Event()

    def handle(batch: list[str]) -> None:
        batches.append(batch)
        began.set()
        assert go_on.wait(30)

    stage: FairStage[str] = FairStage(
        "test", handle, owner=lambda item: item.split()[0], max_batch=100
    )
    flood = [f"flood {number}" for number in range(1001)]
    stage.put(flood[0])
    assert began.wait(30)
    for item in flood[1:]:
        stage.put(item)
    stage.put("quiet 1")
    go_on.set()
    stage.close()
    assert [len(batch) for batch in batches] == [1, *[100] * 10, 1]
    assert "quiet 1" in batches[1]
    assert [item for batch in batches for item in batch if item != "quiet 1"] == flood


def test_a_tenant_with_one_request_does_not_wait_for_the_thousand_of_another() -> None:
    budget = Budget(places=1)
    jobs = [Job(PreparedRequest(), print, 1.0, start_by, "flood") for start_by in range(1000)]
    for job in jobs:
        budget.wait(job)
    quiet = Job(PreparedRequest(), print, 1.0, None, "quiet")
    budget.wait(quiet)
    assert [budget.next(), budget.next(), budget.next()] == [jobs[0], quiet, jobs[1]]
    assert budget.late(499.0) == jobs[2:500]
    assert budget.all_waiting() == jobs[500:]
    assert budget.late(1000.0) == jobs[500:]
    assert not budget.has_next


def test_the_thread_starts_a_bounded_number_of_requests_and_one_that_comes_then_is_next(
    sender: Sender, receiver: Receiver
) -> None:
    """A thousand are submitted for one tenant. When the first of them is answered, one for another
    tenant is submitted: it is answered before all but a few of the thousand are."""
    answered: list[str] = []
    all_answered = threading.Event()

    def submit(owner: str) -> None:
        request = PreparedRequest()
        request.prepare("POST", receiver.url, data=b"{}")
        sender.transport.submit(request, partial(note, owner), owner=owner)

    def note(owner: str, _: Exchange) -> None:
        if not answered:
            submit("quiet")
        answered.append(owner)
        if len(answered) == 1001:
            all_answered.set()

    def flood() -> None:
        for _ in range(1000):
            submit("flood")

    sender.transport.call_soon(flood)
    assert all_answered.wait(30)
    assert answered.index("quiet") < 200


def test_many_lanes_at_once_are_all_begun_and_settled(
    sender: Sender, send: Callable[..., None], receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the thread goes on with only one of them before it looks what else has come."""
    monkeypatch.setattr(sending, "SLICE", 0.0)
    crowd = [make_subscription(url=receiver.url) for _ in range(100)]
    publish_many(many(3))
    ids: list[UUID] = [one.pk for one in crowd]
    send(*crowd)
    assert Delivery.objects.filter(status="succeeded", subscription__in=ids).count() == 3 * len(ids)
