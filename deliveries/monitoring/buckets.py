"""Histograms: which buckets there are, and what a percentile of them is."""

from __future__ import annotations

from collections.abc import Sequence

# Upper bounds, in milliseconds; what is longer than the last has a bucket of its own. The roll-ups
# keep the numbers in this order: a change needs a migration that removes those there are.
ATTEMPT_BOUNDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000)
ARRIVAL_BOUNDS = (*ATTEMPT_BOUNDS, 60_000, 300_000, 900_000, 3_600_000)


def names(name: str, bounds: Sequence[int]) -> list[str]:
    """The name of each bucket, as processes count it."""
    return [f"{name} {bound}" for bound in (*bounds, "inf")]


def percentile(buckets: Sequence[int], bounds: Sequence[int], share: float) -> float | None:
    """The time that `share` (0 to 1) of what was measured did not exceed, in milliseconds.

    Within a bucket the times are taken to be spread evenly. More than the last bound is
    `math.inf`; None if nothing was measured. `buckets` has one number more than `bounds`.
    """
    rank = share * sum(buckets)
    below, lower = 0, 0
    for number, bound in zip(buckets, bounds, strict=False):
        if number and below + number >= rank:
            return lower + (bound - lower) * max(0.0, rank - below) / number
        below, lower = below + number, bound
    return float("inf") if buckets[-1] else None
