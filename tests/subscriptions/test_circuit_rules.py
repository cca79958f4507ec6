"""Every rule of counting and tripping, on values."""

import pytest

from subscriptions.circuit import Tally, count_after, probe_delay, tally, trips

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


def test_a_success_sets_the_count_to_zero() -> None:
    assert count_after(4, tally([OK])) == 0
    assert count_after(4, tally([OK, BAD])) == 1


def test_failures_add_to_the_count() -> None:
    assert count_after(2, tally([BAD, BAD])) == 4


def test_silence_leaves_the_count() -> None:
    assert count_after(3, tally([SILENT])) == 3


@pytest.mark.parametrize(
    ("count", "results", "expected"),
    [
        (4, [BAD], True),
        (3, [BAD], False),
        (0, [BAD] * 5, True),
        (0, [BAD] * 4, False),
        (4, [OK, BAD], False),
        (4, [BAD, OK], True),  # it did reach five in a row before it recovered
        (0, [OK] + [BAD] * 5 + [OK], True),
        (4, [SILENT], False),
        (7, [OK], False),  # counted while the fuse was blown, or under a higher threshold
        (7, [SILENT, OK], False),
        (7, [BAD], True),
    ],
)
def test_five_in_a_row_trip(count: int, results: list[bool | None], expected: bool) -> None:
    assert trips(count, tally(results), threshold=5) is expected


def test_gone_trips_at_once() -> None:
    assert trips(0, tally([BAD], gone=True), threshold=5)


@pytest.mark.parametrize(
    ("probes", "delay"), [(0, 300), (1, 600), (2, 1200), (6, 19200), (7, 21600), (10_000, 21600)]
)
def test_probes_come_half_as_often_each_time_up_to_a_limit(probes: int, delay: float) -> None:
    assert probe_delay(probes, first=300, most=21600) == delay
