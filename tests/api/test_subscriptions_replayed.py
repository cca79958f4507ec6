"""Replays of a subscription's deliveries, and figures of them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from api.v1 import subscription_actions
from deliveries import publish
from deliveries.keeping import replay as replaying
from deliveries.models import Attempt, Delivery, Lane
from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.secrets import crypto
from tests.api.subscriptions import NEW, URL, act, caller, pointers
from tests.factories import make_subscription, statuses

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def subscription() -> Subscription:
    return make_subscription(**NEW)


# Replay.


def finished(topic: str, status: str, age: timedelta = timedelta()) -> int:
    """A finished delivery of a new event."""
    event = publish(topic, {})
    then = timezone.now() - age
    Delivery.objects.filter(event=event).update(
        status=status, next_attempt_at=None, finished_at=then, created_at=then
    )
    found: int = Delivery.objects.get(event=event).pk
    return found


def replayed(status: str = "pending") -> set[int]:
    return set(Delivery.objects.filter(status=status).values_list("pk", flat=True))


def test_what_failed_or_was_discarded_is_sent_again(subscription: Subscription) -> None:
    other = make_subscription(topic_patterns=["other"])
    failed, discarded = finished("order.a", "failed"), finished("order.b", "discarded")
    finished("order.c", "succeeded")
    finished("other", "failed")
    response = act(caller(), subscription, "replay")
    assert response.status_code == 200
    assert response.data == {"pending": 2, "held": 0, "next_cursor": None}
    assert replayed() == {failed, discarded}
    assert statuses(other) == {"failed": 1}
    assert act(caller(), subscription, "replay").data["pending"] == 0


def test_a_replay_is_narrowed_by_status_topic_and_time(subscription: Subscription) -> None:
    def at(hours: float) -> str:
        return (timezone.now() - timedelta(hours=hours)).isoformat()

    old = finished("order.a", "failed", timedelta(hours=5))
    new = finished("order.b", "failed", timedelta(hours=1))
    good = finished("order.a", "succeeded", timedelta(hours=1))

    def chosen(**body: Any) -> set[int]:
        before = dict(Delivery.objects.values_list("pk", "status"))
        assert act(caller(), subscription, "replay", body).status_code == 200
        found = replayed()
        for pk, status in before.items():
            Delivery.objects.filter(pk=pk).update(status=status, next_attempt_at=None)
        return found

    assert chosen() == {old, new}
    assert chosen(status=["succeeded"]) == {good}
    assert chosen(status=["failed", "succeeded"], topic="order.a") == {old, good}
    assert chosen(topic="order.b") == {new}
    assert chosen(topic="nothing.like.it") == set()
    assert chosen(since=at(3)) == {new}
    assert chosen(until=at(3)) == {old}
    assert chosen(since=at(6), until=at(4.9)) == {old}


def test_what_is_replayed_for_a_paused_one_is_held(subscription: Subscription) -> None:
    failed = finished("order.a", "failed")
    circuit.pause([subscription.pk])
    assert act(caller(), subscription, "replay").data == {
        "pending": 0, "held": 1, "next_cursor": None,
    }  # fmt: skip
    assert replayed("held") == {failed}


def test_a_large_replay_goes_on_where_the_cursor_says(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "BATCH", 2)
    monkeypatch.setattr(subscription_actions, "BATCHES", 1)
    for number in range(3):
        finished("order.a", "discarded")
        finished("order.b" if number else "order.a", "failed")
    client = caller()
    body: dict[str, Any] = {}
    numbers = []
    while True:
        answer = act(client, subscription, "replay", body).data
        numbers.append(answer["pending"])
        # These fail again at once: those that go on do not take them a second time.
        Delivery.objects.filter(status="pending").update(status="failed", next_attempt_at=None)
        finished("order.new", "failed")
        if answer["next_cursor"] is None:
            break
        body = {"cursor": answer["next_cursor"]}
    assert sum(numbers) >= 6
    assert len(numbers) <= 6


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"status": ["pending"]}, "/status/0"),
        ({"status": []}, "/status"),
        ({"status": "failed"}, "/status"),
        ({"topic": "order.*"}, "/topic"),
        ({"topic": ""}, "/topic"),
        ({"topic": "a\0"}, "/topic"),
        ({"since": "yesterday"}, "/since"),
        ({"since": "2026-01-31T12:00:00"}, "/since"),
        ({"since": "2026-02-31T12:00:00Z"}, "/since"),
        ({"since": "2026"}, "/since"),
        ({"since": 5}, "/since"),
        ({"until": None}, "/until"),
        ({"until": "2026-01-31T12:00:00+99:00"}, "/until"),
        ({"all": True}, "/all"),
    ],
)
def test_a_wrong_replay_is_422_and_replays_nothing(
    subscription: Subscription, body: Any, place: str
) -> None:
    finished("order.a", "failed")
    assert pointers(act(caller(), subscription, "replay", body)) == [place]
    assert statuses(subscription) == {"failed": 1}


@pytest.mark.parametrize("cursor", ["", "abc", "a:b:c", "é", "[1, 2]"])
def test_a_cursor_that_is_none_of_a_replay_is_422(subscription: Subscription, cursor: str) -> None:
    for given in (cursor, crypto.encrypt(cursor.encode())):
        response = act(caller(), subscription, "replay", {"cursor": given})
        assert pointers(response, "bad-cursor") == ["/cursor"]


def test_a_cursor_is_of_one_replay_alone(
    subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "BATCH", 1)
    monkeypatch.setattr(subscription_actions, "BATCHES", 1)
    other = make_subscription(topic_patterns=["other"])
    for _ in range(3):
        finished("order.a", "failed")
    since = "2026-01-31T12:00:00Z"
    cursor = act(caller(), subscription, "replay", {"since": since}).data["next_cursor"]
    for one, choice in (
        (other, {"since": since}),
        (subscription, {}),
        (subscription, {"since": since, "status": ["failed"]}),
        (subscription, {"since": since, "topic": "order.a"}),
        (subscription, {"since": since, "until": "2126-01-31T12:00:00Z"}),
    ):
        response = act(caller(), one, "replay", {**choice, "cursor": cursor})
        assert pointers(response, "bad-cursor") == ["/cursor"]
    same = {"since": "2026-01-31T13:00:00+01:00", "cursor": cursor}
    assert act(caller(), subscription, "replay", same).status_code == 200


@pytest.mark.parametrize("since", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_the_ends_of_time_are_times(subscription: Subscription, since: str) -> None:
    assert act(caller(), subscription, "replay", {"since": since}).status_code == 200


# Figures.


def test_the_figures_of_a_subscription(subscription: Subscription) -> None:
    for status, durations in (("succeeded", [5, 7]), ("failed", [9]), ("discarded", [])):
        pk = finished("order.a", status)
        for number, duration in enumerate(durations, 1):
            Attempt.objects.create(
                delivery_id=pk, number=number, outcome="http", status_code=500,
                started_at=timezone.now(), duration_ms=duration,
            )  # fmt: skip
    Attempt.objects.create(
        delivery_id=pk, number=1, outcome="timeout", started_at=timezone.now(), duration_ms=9999
    )
    publish("order.b", {})
    until = timezone.now() + timedelta(minutes=5)
    Lane.objects.create(
        subscription=subscription, failures=2, resume_at=until, backoff_reason="503",
        lease_until=until,
    )  # fmt: skip
    response = caller().call("GET", f"{URL}/{subscription.pk}/stats")
    assert response.status_code == 200
    stats = response.data
    recent = stats.pop("recent")
    assert recent.pop("since") is not None
    assert recent == {
        "pending": 1, "held": 0, "succeeded": 1, "failed": 1, "discarded": 1, "attempts": 4,
        "duration_ms_p50": 7, "duration_ms_p99": 9,
    }  # fmt: skip
    assert datetime.fromisoformat(stats.pop("backing_off_until")) > timezone.now()
    assert datetime.fromisoformat(stats.pop("sending_until")) > timezone.now()
    assert stats == {
        "pending": 1, "held": 0, "discarding": 0, "failed_attempts": 2,
        "backing_off_because": "503 (2 failed attempts in a row)",
    }  # fmt: skip


def test_the_figures_of_one_to_which_nothing_was_sent(subscription: Subscription) -> None:
    stats = caller().call("GET", f"{URL}/{subscription.pk}/stats").data
    recent = stats.pop("recent")
    assert set(stats.values()) == {0, None}
    assert set(recent.values()) == {0, None}
