"""The rules of the circuit, written down a second time, to be held against the tables.

Simpler than the product's: one attempt after the other, no batches, no workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RETRIED = {408, 425, 429}
OWN_FAULTS = {"own_dns", "shutdown", "internal", "unsendable"}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A row of the table of attempts, in the order in which they were written."""

    delivery: int
    number: int
    outcome: str
    status: int | None
    started: float
    seconds: float

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def retried(self) -> bool:
        if self.status is None:
            return True
        return self.status in RETRIED or 500 <= self.status < 600

    @property
    def answered(self) -> bool:
        """Whether the sender says that it got an answer."""
        return self.status is not None


@dataclass(frozen=True, slots=True)
class Replayed:
    """`failures`: in a row at the end; `trips`: how often the threshold was reached."""

    failures: int
    trips: int
    tripped: bool


def replay(attempts: Iterable[Attempt], *, quick: int, threshold: int) -> Replayed:
    """What the circuit should say after these attempts of one subscription.

    For histories without `Retry-After`, without resets by hand, and with one request in flight
    when the threshold is reached. `quick` is the number of quick retries.
    """
    failures = trips = 0
    tripped_at: float | None = None
    used: dict[int, int] = {}
    for one in attempts:
        if one.outcome == "unknown" or one.outcome in OWN_FAULTS:
            continue
        if tripped_at is not None:
            # Of an older epoch, or a probe: of the two only the latter can begin after the trip.
            if one.succeeded and one.started > tripped_at:
                failures, tripped_at = 0, None
                used.clear()  # what was held is released with its retries unused
            continue
        if one.succeeded:
            failures = 0
            continue
        before = used.get(one.delivery, 0)
        used[one.delivery] = before + 1
        if one.status == 429 or (one.retried and before < quick):
            continue
        failures += 1
        if failures >= threshold or one.status == 410:
            trips += 1
            tripped_at = one.started + one.seconds
    return Replayed(failures, trips, tripped_at is not None)
