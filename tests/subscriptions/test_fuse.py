"""A mass failure of our own egress trips a few circuits, not all of them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from subscriptions import circuit, fuse
from subscriptions.circuit import Report, tally
from subscriptions.models import Subscription
from subscriptions.signals import fuse_blown, fuse_mended
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("active", "limit"), [(1, 10), (50, 10), (51, 10.2), (100, 20), (1000, 200)]
)
def test_ten_trips_or_a_fifth_are_allowed(active: int, limit: float) -> None:
    assert fuse.allowed_trips(active, 10, 0.2) == pytest.approx(limit)


def fail(*subscriptions: Subscription, gone: bool = False) -> list[uuid.UUID]:
    with transaction.atomic():
        return circuit.record(
            [
                Report(one.pk, one.circuit_epoch, tally([False] * 5, gone=gone), "timeout", True)
                for one in subscriptions
            ]
        )


def succeed(subscription: Subscription) -> None:
    with transaction.atomic():
        circuit.record([Report(subscription.pk, subscription.circuit_epoch, tally([True]))])


@pytest.fixture
def many() -> list[Subscription]:
    return [make_subscription() for _ in range(20)]


def test_the_eleventh_trip_blows_the_fuse_and_says_why(
    many: list[Subscription], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def blow(**_: Any) -> None:
        told.append("blown")

    def mend(**_: Any) -> None:
        told.append("mended")

    fuse_blown.connect(blow)
    fuse_mended.connect(mend)
    with caplog.at_level(logging.ERROR):
        tripped = [one for subscription in many for one in fail(subscription)]
    assert len(tripped) == 10
    assert fuse.blown()
    assert told == ["blown"]
    assert sum("suspect our own network" in one.message for one in caplog.records) == 1
    assert Subscription.objects.active().count() == 10
    many[15].refresh_from_db()
    assert many[15].consecutive_failures == 5
    # The first failing one that answers again mends it, and trips go on.
    succeed(many[15])
    assert not fuse.blown()
    assert told == ["blown", "mended"]
    assert fail(many[16]) == [many[16].pk]


def test_a_success_from_before_it_blew_does_not_mend_it(many: list[Subscription]) -> None:
    before = timezone.now()
    fail(*many[:15])
    fuse.mend(before)
    assert fuse.blown()
    fuse.mend(timezone.now())
    assert not fuse.blown()


def test_healthy_successes_meanwhile_do_not_mend_it(many: list[Subscription]) -> None:
    fail(*many[:15])
    assert fuse.blown()
    succeed(many[19])
    assert fuse.blown()


def test_a_batch_that_would_trip_too_many_trips_none(many: list[Subscription]) -> None:
    assert fail(*many) == []
    assert Subscription.objects.active().count() == 20


def test_a_success_of_one_that_the_fuse_kept_enabled_does_not_trip_it(
    many: list[Subscription],
) -> None:
    assert fail(*many) == []
    succeed(many[0])
    assert Subscription.objects.active().count() == 20
    assert Subscription.objects.get(pk=many[0].pk).consecutive_failures == 0


def test_trips_of_long_ago_do_not_add_up(many: list[Subscription]) -> None:
    assert len(fail(*many[:10])) == 10
    Subscription.objects.tripped().update(auto_disabled_at=timezone.now() - timedelta(minutes=6))
    assert len(fail(*many[10:])) == 10


def test_gone_is_an_answer_and_trips_in_any_case(many: list[Subscription]) -> None:
    fail(*many[:11])
    assert fuse.blown()
    assert fail(many[12], gone=True) == [many[12].pk]


def test_twenty_workers_that_trip_at_once_count_each_other(
    many: list[Subscription], at_once: Callable[..., list[Any]]
) -> None:
    tripped = at_once(lambda number: fail(many[number]), 20)
    assert sum(len(one) for one in tripped) == 10
    assert Subscription.objects.tripped().count() == 10
    assert fuse.blown()
