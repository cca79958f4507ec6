"""Counting, tripping and probing: the rules on values, and the statements that run against them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from subscriptions import circuit
from subscriptions.circuit import Tally, tally
from subscriptions.models import Subscription
from tests.factories import make_subscription
from tests.security.properties import FIXED

OK, BAD, SILENT = True, False, None


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], Tally()),
        ([OK], Tally(succeeded=True)),
        ([BAD], Tally(before=1, peak=1, after=1)),
        ([SILENT, SILENT], Tally()),
        ([BAD, SILENT, BAD], Tally(before=2, peak=2, after=2)),
        ([BAD, BAD, OK], Tally(before=2, peak=2, after=0, succeeded=True)),
        ([OK, BAD, BAD], Tally(before=0, peak=2, after=2, succeeded=True)),
        ([BAD, OK, BAD, BAD, OK, BAD], Tally(before=1, peak=2, after=1, succeeded=True)),
    ],
)
def test_results_are_folded_in_their_order(results: list[bool | None], expected: Tally) -> None:
    assert tally(results) == expected


@dataclass
class Told:
    """A circuit with `count` failures is told `results`, all at once."""

    count: int
    results: list[bool | None]
    gone: bool

    def expected(self, threshold: int) -> tuple[int, bool]:
        """The count afterwards, and whether it trips: one result after the other."""
        count, tripped = self.count, self.gone
        for result in self.results:
            if result is not None:
                count = 0 if result else count + 1
                # A success never trips, however high the count was.
                tripped = tripped or (not result and count >= threshold)
        return count, tripped


cases = st.builds(
    Told,
    st.integers(0, 9),
    st.lists(st.sampled_from([OK, BAD, BAD, SILENT]), min_size=1, max_size=8),
    st.sampled_from([False] * 9 + [True]),
)
MANY = 12


def record(
    subscriptions: list[Subscription], told: list[Told], threshold: int
) -> list[tuple[int, bool]]:
    ids = [one.pk for one in subscriptions]
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription s SET enabled = true, auto_disabled_at = NULL, "
            "circuit_epoch = 0, consecutive_failures = given.count "
            "FROM unnest(%s::uuid[], %s::int[]) AS given (id, count) WHERE s.id = given.id",
            [ids, [one.count for one in told]],
        )
    reports = [
        circuit.Report(
            key,
            0,
            tally(one.results, gone=one.gone),
            error="an error",
            failed=one.gone or not all(one.results),
        )
        for key, one in zip(ids, told, strict=True)
    ]
    with transaction.atomic():
        tripped = circuit.record(reports)
    rows = Subscription.objects.in_bulk(ids)
    assert {key for key in ids if rows[key].state == "tripped"} == set(tripped)
    return [(rows[key].consecutive_failures, rows[key].state == "tripped") for key in ids]


@pytest.mark.django_db(transaction=True)
def test_one_statement_counts_and_trips_as_the_results_would_one_by_one(
    configure: Callable[..., None],
) -> None:
    subscriptions = sorted((make_subscription() for _ in range(MANY)), key=lambda one: one.pk)
    seen: set[tuple[bool, bool, bool]] = set()

    @settings(FIXED, max_examples=60)
    @given(st.lists(cases, min_size=MANY, max_size=MANY), st.integers(1, 7))
    def hold(told: list[Told], threshold: int) -> None:
        configure(circuit_threshold=threshold)
        expected = [one.expected(threshold) for one in told]
        assert record(subscriptions, told, threshold) == expected
        seen.update(
            (one.gone, OK in one.results, trips)
            for one, (_, trips) in zip(told, expected, strict=True)
        )

    hold()
    assert len(seen) >= 6, "trips and none, with a success and without, and answers of 410"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("probes", "delay"), [(0, 600), (1, 1200), (5, 19200), (6, 21600), (100, 21600)]
)
def test_probes_come_half_as_often_each_time_up_to_a_limit(
    configure: Callable[..., None], probes: int, delay: float
) -> None:
    configure(probe_first=300.0, probe_most=21600.0)
    subscription = make_subscription()
    with transaction.atomic():
        circuit.record(
            [circuit.Report(subscription.pk, 0, tally([BAD], gone=True), "gone", failed=True)]
        )
    Subscription.objects.filter(pk=subscription.pk).update(probe_count=probes)
    subscription.refresh_from_db()
    circuit.record_failed_probe(subscription.pk, subscription.circuit_epoch, "again")
    subscription.refresh_from_db()
    assert subscription.next_probe_at is not None
    assert abs(subscription.next_probe_at - timezone.now() - timedelta(seconds=delay)) < timedelta(
        seconds=5
    )
