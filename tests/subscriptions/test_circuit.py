"""The circuit on real PostgreSQL, with twenty and more threads at a time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from subscriptions import circuit
from subscriptions.circuit import Report, tally
from subscriptions.models import Subscription
from subscriptions.signals import circuit_reset, circuit_tripped
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)

THREADS = 24
AtOnce = Callable[[Callable[[int], Any], int], list[Any]]


@pytest.fixture
def heard() -> Any:
    """What the two signals said, as (signal, name, state)."""
    said: list[tuple[str, str, str]] = []

    def tripped(subscription: Subscription, **_: Any) -> None:
        said.append(("tripped", subscription.name, subscription.state))

    def reset(subscription: Subscription, **_: Any) -> None:
        said.append(("reset", subscription.name, subscription.state))

    circuit_tripped.connect(tripped)
    circuit_reset.connect(reset)
    yield said
    circuit_tripped.disconnect(tripped)
    circuit_reset.disconnect(reset)


def report(subscription: Subscription, *results: bool | None, epoch: int | None = None) -> Report:
    failed = False in results or None in results
    return Report(
        subscription.pk,
        subscription.circuit_epoch if epoch is None else epoch,
        tally(results),
        error="503 service unavailable" if failed else "",
        failed=failed,
    )


def record(*reports: Report) -> list[Any]:
    with transaction.atomic():
        return circuit.record(reports)


def trip(subscription: Subscription) -> None:
    assert record(report(subscription, *[False] * 5)) == [subscription.pk]
    subscription.refresh_from_db()


def test_a_trip_keeps_what_an_operator_asks_for(heard: list[Any]) -> None:
    subscription = make_subscription()
    before = timezone.now()
    trip(subscription)
    assert subscription.state == "tripped"
    assert not subscription.enabled
    assert subscription.auto_disabled_at is not None
    assert subscription.auto_disabled_at >= before - timedelta(seconds=1)
    assert subscription.consecutive_failures == 5
    assert subscription.last_error == "503 service unavailable"
    assert subscription.last_failure_at is not None
    assert subscription.next_probe_at is not None
    assert heard == [("tripped", subscription.name, "tripped")]


def test_a_manual_circuit_plans_no_probe() -> None:
    subscription = make_subscription(recovery="manual")
    trip(subscription)
    assert subscription.next_probe_at is None


def test_a_success_sets_the_count_to_zero_and_forgets_the_error() -> None:
    subscription = make_subscription()
    record(report(subscription, False, False))
    record(report(subscription, True))
    subscription.refresh_from_db()
    assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
    assert subscription.last_success_at is not None


def test_an_uncounted_failure_is_seen_and_not_counted() -> None:
    subscription = make_subscription()
    record(report(subscription, None))
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 0
    assert subscription.last_error == "503 service unavailable"


def test_fifty_concurrent_failures_count_exactly_fifty(
    at_once: AtOnce, configure: Callable[..., None]
) -> None:
    configure(circuit_threshold=1000)
    subscription = make_subscription()
    at_once(lambda _: record(report(subscription, False)), 50)
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 50


def test_concurrent_failures_trip_once_and_keep_the_first_time(
    at_once: AtOnce, heard: list[Any]
) -> None:
    subscription = make_subscription()
    tripped = at_once(lambda _: record(report(subscription, False)), THREADS)
    assert sum(len(one) for one in tripped) == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 5
    assert subscription.circuit_epoch == report(subscription).epoch
    assert [one[0] for one in heard] == ["tripped"]


def test_two_workers_that_report_many_subscriptions_in_any_order_do_not_deadlock(
    at_once: AtOnce,
) -> None:
    many = [make_subscription() for _ in range(10)]

    def work(number: int) -> None:
        order = many if number % 2 else many[::-1]
        for _ in range(5):
            record(*(report(one, None) for one in order))

    at_once(work, THREADS)


def test_concurrent_resets_reset_once(at_once: AtOnce, heard: list[Any]) -> None:
    subscription = make_subscription()
    trip(subscription)
    resets = at_once(lambda _: circuit.reset([subscription.pk]), THREADS)
    assert sum(len(one) for one in resets) == 1
    assert [one[0] for one in heard] == ["tripped", "reset"]


def test_a_reset_clears_the_three_fields_and_the_probes() -> None:
    subscription = make_subscription()
    trip(subscription)
    subscription.enabled = True
    subscription.save()
    assert subscription.state == "active"
    assert subscription.auto_disabled_at is None
    assert subscription.consecutive_failures == 0
    assert subscription.last_error == ""
    assert subscription.next_probe_at is None


def test_late_results_of_an_older_epoch_change_nothing(at_once: AtOnce, heard: list[Any]) -> None:
    subscription = make_subscription()
    older = subscription.circuit_epoch
    trip(subscription)
    circuit.reset([subscription.pk])
    at_once(lambda _: record(report(subscription, False, epoch=older)), 50)
    subscription.refresh_from_db()
    assert subscription.state == "active"
    assert subscription.consecutive_failures == 0
    assert subscription.last_error == ""
    assert [one[0] for one in heard] == ["tripped", "reset"]


def test_a_late_success_does_not_reopen_a_tripped_circuit() -> None:
    subscription = make_subscription()
    older = subscription.circuit_epoch
    trip(subscription)
    record(
        report(subscription, True, epoch=older),
    )
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert subscription.consecutive_failures == 5


@pytest.mark.parametrize("change", ["url", "secret", "rotate"])
def test_a_new_url_or_secret_begins_a_new_epoch(change: str) -> None:
    subscription = make_subscription()
    older = subscription.circuit_epoch
    if change == "url":
        subscription.url = "https://elsewhere.example.com/"
        subscription.save()
    elif change == "secret":
        subscription.add_secret()
    else:
        subscription.rotate_secret()
    record(report(subscription, *[False] * 9, epoch=older))
    subscription.refresh_from_db()
    assert subscription.state == "active"
    assert subscription.consecutive_failures == 0


def test_another_field_keeps_the_epoch() -> None:
    subscription = make_subscription()
    older = subscription.circuit_epoch
    subscription.max_in_flight = 3
    subscription.save()
    subscription.refresh_from_db()
    assert subscription.circuit_epoch == older


def test_trips_resets_and_pauses_that_race_leave_one_of_three_states(at_once: AtOnce) -> None:
    subscription = make_subscription()

    def work(number: int) -> None:
        for _ in range(10):
            if number % 3 == 0:
                fresh = Subscription.objects.get(pk=subscription.pk)
                record(report(fresh, *[False] * 5))
            elif number % 3 == 1:
                circuit.reset([subscription.pk])
            else:
                circuit.pause([subscription.pk])

    at_once(work, THREADS)
    subscription.refresh_from_db()
    assert subscription.state in {"active", "paused", "tripped"}
    if subscription.state != "tripped":
        assert subscription.auto_disabled_at is None


def test_a_form_that_was_open_during_the_trip_does_not_undo_it() -> None:
    subscription = make_subscription()
    form = Subscription.objects.get(pk=subscription.pk)
    trip(subscription)
    form.name = "another name"
    form.save()
    subscription.refresh_from_db()
    assert subscription.name == "another name"
    assert subscription.state == "tripped"
    assert subscription.consecutive_failures == 5


def test_pausing_and_resuming_trips_nothing_and_says_nothing(heard: list[Any]) -> None:
    subscription = make_subscription()
    subscription.enabled = False
    subscription.save()
    assert subscription.state == "paused"
    assert subscription.auto_disabled_at is None
    subscription.enabled = True
    subscription.save()
    assert subscription.state == "active"
    assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
    assert heard == []


def test_saving_enabled_off_on_a_tripped_subscription_leaves_it_tripped() -> None:
    subscription = make_subscription()
    trip(subscription)
    subscription.enabled = False
    subscription.save(update_fields=["enabled"])
    assert subscription.state == "tripped"


def test_pausing_a_tripped_subscription_ends_its_probes() -> None:
    subscription = make_subscription()
    trip(subscription)
    assert circuit.pause([subscription.pk]) == [subscription.pk]
    subscription.refresh_from_db()
    assert subscription.state == "paused"
    assert subscription.next_probe_at is None
    assert subscription.last_error == "503 service unavailable"


def test_a_failed_probe_doubles_the_time_to_the_next() -> None:
    subscription = make_subscription()
    trip(subscription)
    times = []
    for _ in range(3):
        before = timezone.now()
        circuit.record_failed_probe(subscription.pk, subscription.circuit_epoch, "refused")
        subscription.refresh_from_db()
        assert subscription.next_probe_at is not None
        times.append((subscription.next_probe_at - before).total_seconds())
    assert times == [pytest.approx(wanted, abs=2) for wanted in (600, 1200, 2400)]
    assert subscription.state == "tripped"
    assert subscription.last_error == "refused"


def test_a_failed_probe_plans_no_other_once_recovery_is_manual() -> None:
    subscription = make_subscription()
    trip(subscription)
    subscription.recovery = "manual"
    subscription.save()
    circuit.record_failed_probe(subscription.pk, subscription.circuit_epoch, "refused")
    subscription.refresh_from_db()
    assert (subscription.probe_count, subscription.next_probe_at) == (1, None)


def test_a_signal_receiver_that_raises_stops_nothing() -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("a receiver's own mistake")

    subscription = make_subscription()
    circuit_tripped.connect(broken)
    try:
        trip(subscription)
    finally:
        circuit_tripped.disconnect(broken)
    assert subscription.state == "tripped"


def test_a_trip_that_is_rolled_back_is_not_announced(heard: list[Any]) -> None:
    subscription = make_subscription()
    with pytest.raises(RuntimeError), transaction.atomic():
        circuit.record([report(subscription, *[False] * 5)])
        raise RuntimeError
    subscription.refresh_from_db()
    assert subscription.state == "active"
    assert heard == []


def test_trips_failed_probes_and_resets_have_one_line_each_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    subscription = make_subscription(name="billing")
    with caplog.at_level("INFO", "subscriptions"):
        trip(subscription)
        subscription.refresh_from_db()
        circuit.record_failed_probe(subscription.pk, subscription.circuit_epoch, "no\nanswer")
        circuit.record_failed_probe(subscription.pk, subscription.circuit_epoch - 1, "too late")
        circuit.reset([subscription.pk])
        circuit.reset([subscription.pk])
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        (
            "WARNING",
            f"The circuit of subscription billing ({subscription.pk}) tripped after 5 failures in "
            "a row; its deliveries are held. Last error: 503 service unavailable",
        ),
        ("INFO", f"A probe of subscription {subscription.pk} failed; it stays tripped: no answer"),
        (
            "INFO",
            f"The circuit of subscription billing ({subscription.pk}) was reset; it is active "
            "again.",
        ),
    ]


def test_pauses_and_resumptions_have_one_line_each_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    subscription = make_subscription(name="billing")
    with caplog.at_level("INFO", "subscriptions"):
        circuit.pause([subscription.pk])
        circuit.pause([subscription.pk])
        circuit.reset([subscription.pk])
        circuit.reset([subscription.pk])
    named = f"Subscription billing ({subscription.pk})"
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", f"{named} was paused; what is pending is held."),
        ("INFO", f"{named} was resumed."),
    ]
