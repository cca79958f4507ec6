"""A mass failure of our own egress trips a few circuits, not all of them."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from deliveries.keeping.sweep import sweep
from subscriptions import circuit
from subscriptions.circuit import Report, fuse, tally
from subscriptions.circuit.rules import allowed_trips
from subscriptions.models import Subscription
from subscriptions.signals import fuse_blown, fuse_reset
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.parametrize(
    ("active", "limit"), [(1, 10), (50, 10), (51, 10.2), (100, 20), (1000, 200)]
)
def test_ten_trips_or_a_fifth_are_allowed(active: int, limit: float) -> None:
    assert allowed_trips(active, 10, 0.2) == pytest.approx(limit)


def fail(
    *subscriptions: Subscription, answered: bool = False, gone: bool = False
) -> list[uuid.UUID]:
    """Five failures each: timeouts, or HTTP answers."""
    with transaction.atomic():
        return circuit.record(
            [
                Report(
                    one.pk,
                    one.circuit_epoch,
                    tally([False] * 5, gone=gone),
                    error="500" if answered else "timeout",
                    failed=True,
                    network=not answered,
                    answered=answered,
                )
                for one in subscriptions
            ]
        )


def succeed(subscription: Subscription) -> None:
    report = Report(subscription.pk, subscription.circuit_epoch, tally([True]), answered=True)
    with transaction.atomic():
        circuit.record([report])


@pytest.fixture
def many() -> list[Subscription]:
    return [make_subscription() for _ in range(20)]


def test_the_eleventh_trip_blows_the_fuse_and_says_why(
    many: list[Subscription], caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []

    def blow(**_: Any) -> None:
        told.append("blown")

    def reset(**_: Any) -> None:
        told.append("reset")

    fuse_blown.connect(blow)
    fuse_reset.connect(reset)
    with caplog.at_level(logging.ERROR):
        tripped = [one for subscription in many for one in fail(subscription)]
    assert len(tripped) == 10
    assert fuse.blown()
    assert told == ["blown"]
    assert sum("suspect our own network" in one.message for one in caplog.records) == 1
    assert Subscription.objects.active().count() == 10
    many[15].refresh_from_db()
    assert many[15].consecutive_failures == 5
    # The first failing one that answers again resets it, and trips go on.
    succeed(many[15])
    assert not fuse.blown()
    assert told == ["blown", "reset"]
    assert fail(many[16]) == [many[16].pk]


def test_a_success_from_before_it_blew_does_not_reset_it(many: list[Subscription]) -> None:
    before = timezone.now()
    fail(*many[:15])
    fuse.reset(before)
    assert fuse.blown()
    fuse.reset(timezone.now())
    assert not fuse.blown()


def test_healthy_successes_meanwhile_do_not_reset_it(many: list[Subscription]) -> None:
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
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET auto_disabled_at = now() - interval '6 minutes' "
            "WHERE NOT enabled"
        )
    assert len(fail(*many[10:])) == 10


def test_gone_is_an_answer_and_trips_in_any_case(many: list[Subscription]) -> None:
    fail(*many[:11])
    assert fuse.blown()
    assert fail(many[12], answered=True, gone=True) == [many[12].pk]


def test_twenty_workers_that_trip_at_once_count_each_other(
    many: list[Subscription], at_once: Callable[..., list[Any]]
) -> None:
    tripped = at_once(lambda number: fail(many[number]), 20)
    assert sum(len(one) for one in tripped) == 10
    assert Subscription.objects.tripped().count() == 10
    assert fuse.blown()


@pytest.mark.parametrize("gone", [False, True])
def test_answers_trip_however_many_they_are_and_blow_no_fuse(
    many: list[Subscription], gone: bool
) -> None:
    assert len(fail(*many[:15], answered=True, gone=gone)) == 15
    assert not fuse.blown()
    # And they leave all of its trips to those that cannot be reached.
    assert fail(many[15]) == [many[15].pk]


def test_answers_trip_while_the_fuse_is_blown(many: list[Subscription]) -> None:
    fail(*many[:12])
    assert fuse.blown()
    assert fail(many[13], answered=True) == [many[13].pk]
    assert fuse.blown(), "an answer of one that could be reached all along says nothing"


def test_an_error_answered_by_one_that_could_not_be_reached_resets_it(
    many: list[Subscription],
) -> None:
    fail(*many[:12])
    with transaction.atomic():
        circuit.record(
            [
                Report(
                    many[3].pk, many[3].circuit_epoch, tally([None]),
                    error="503", failed=True, answered=True,
                )
            ]
        )  # fmt: skip
    assert not fuse.blown()


def test_an_operator_who_resets_a_circuit_does_not_reset_the_fuse(
    many: list[Subscription],
) -> None:
    for one in many[:11]:
        fail(one)
    assert fuse.blown()
    circuit.reset([many[0].pk])
    assert fuse.blown()
    # What is sent then does, if it is answered.
    succeed(Subscription.objects.get(pk=many[0].pk))
    assert not fuse.blown()


def blew(minutes: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_tripfuse SET blown_at = now() - %s * interval '1 minute'",
            [minutes],
        )


def test_a_success_of_anybody_after_some_minutes_resets_it_though_nobody_wants_to_trip(
    many: list[Subscription],
) -> None:
    fail(*many[:15])
    circuit.pause([one.pk for one in many[:15]])
    fuse.reset_outlived()
    blew(4)
    succeed(many[19])
    sweep()
    assert fuse.blown()
    blew(6)
    sweep()
    assert not fuse.blown()
    fuse.reset_outlived()


def test_trips_in_the_transaction_that_resets_it_count(many: list[Subscription]) -> None:
    fail(*many[:15])
    blew(6)
    succeed(many[19])
    with transaction.atomic():
        assert len(fail(*many[:6])) == 6
        assert not fuse.blown()
        assert len(fail(*many[6:10])) == 4
        assert fail(many[10]) == []
    assert fail(many[11]) == []
    assert fuse.blown()


@pytest.mark.parametrize("answer", ["success", "500", "none", "too late"])
def test_a_probe_that_is_answered_resets_it(many: list[Subscription], answer: str) -> None:
    for one in many[:11]:
        fail(one)
    probed = Subscription.objects.get(pk=many[0].pk)
    epoch = probed.circuit_epoch - (answer == "too late")
    if answer in ("success", "too late"):
        circuit.reset([probed.pk], epoch=epoch)
    else:
        circuit.record_failed_probe(probed.pk, epoch, answer, answered=answer == "500")
    assert fuse.blown() == (answer in ("none", "too late"))


def test_what_is_rolled_back_is_not_in_the_log(
    many: list[Subscription], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "subscriptions"):
        with pytest.raises(RuntimeError), transaction.atomic():
            fail(*many)
            raise RuntimeError
        assert not fuse.blown()
        assert caplog.records == []
        fail(*many)
        fuse.reset()
        fuse.reset()
    assert [one.levelname for one in caplog.records] == ["ERROR", "WARNING"]
