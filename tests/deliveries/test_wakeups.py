"""Wake-ups in the embedded Valkey: who shares a message, and what a broker that is away costs."""

from __future__ import annotations

import base64
import json
import threading
from typing import Any
from uuid import UUID

import pytest
import redis
from kombu import exceptions

from deliveries.waking import wakeups
from subscriptions.conf import conf

IDS = [UUID(int=number) for number in range(250)]


def messages(broker: redis.Redis, queue: str) -> list[list[UUID]]:
    """The subscriptions of each waiting message, the first sent first."""
    found: list[Any] = broker.lrange(queue, 0, -1)  # type: ignore[assignment]
    bodies = [json.loads(base64.b64decode(json.loads(one)["body"])) for one in reversed(found)]
    return [[UUID(one) for one in arguments[0]] for arguments, *_ in bodies]


def handle(*orders: wakeups._Order) -> None:
    wakeups._Waker()._handle(list(orders))


def order(ids: list[UUID], countdown: float | None = None, **more: Any) -> wakeups._Order:
    queue = "deliver" if countdown is None else "recover"
    return wakeups._Order(ids, queue, more.get("one_by_one", True), countdown)


def test_subscriptions_of_one_event_are_woken_one_by_one(broker: redis.Redis) -> None:
    handle(order(IDS[:20]))
    assert messages(broker, "deliver") == [[one] for one in IDS[:20]]


@pytest.mark.parametrize(
    ("subscriptions", "sent"), [(1, 1), (16, 16), (20, 10), (100, 10), (250, 10)]
)
def test_subscriptions_of_many_events_share_about_ten_messages(
    broker: redis.Redis, subscriptions: int, sent: int
) -> None:
    handle(order(IDS[:subscriptions], one_by_one=False))
    found = messages(broker, "deliver")
    assert [one for ids in found for one in ids] == IDS[:subscriptions]
    assert len(found) == sent


def test_receivers_that_timed_out_together_are_woken_together(broker: redis.Redis) -> None:
    handle(*(order([one], countdown=0.9 + n / 2500) for n, one in enumerate(IDS)))
    sizes = [len(one) for one in messages(broker, "recover")]
    assert sum(sizes) == len(IDS)
    assert len(sizes) <= 2 * wakeups.MESSAGES
    assert max(sizes) <= conf().fanout_chunk


@pytest.mark.skipif(
    not hasattr(exceptions, "BatchPublishError"), reason="kombu before 5.7 sends no batches"
)
def test_a_batch_of_messages_that_fails_is_an_outage_and_leaves_no_flag(
    broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "broker_outage", wakeups.Outage("the broker"))

    def fail(_: Any) -> None:
        raise exceptions.BatchPublishError("the connection went away half way")

    monkeypatch.setattr("kombu.transport.redis.PublishBatch.flush", fail)
    handle(order(IDS[:20]))
    assert wakeups.broker_outage.lasting()
    flags = wakeups.flags()
    assert not flags.keys("webhooks:woken:*")


def test_a_flag_ends_with_the_lease_at_the_latest(
    broker: redis.Redis, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(time_slice=0.5, request_timeout=0.5)
    handle(order(IDS[:1]))
    (flag,) = wakeups.flags().keys("webhooks:woken:*")  # type: ignore[misc]
    left = int(wakeups.flags().pttl(flag))  # type: ignore[arg-type]
    assert 0 < left <= 1000 * conf().lease < 1000 * wakeups.FLAG_SECONDS


def test_a_wake_up_waits_for_a_hanging_broker_half_a_second_and_the_next_not_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(wakeups, "_send_now", lambda *_: let_go.wait(30))
    waker = wakeups._Waker()
    first, second = order(IDS[:1]), order(IDS[1:2])
    waker.order(first, 0.01)
    waker.order(second, 30.0)
    assert not first.done.is_set()
    let_go.set()
    assert first.done.wait(30)
    assert second.done.wait(30)
