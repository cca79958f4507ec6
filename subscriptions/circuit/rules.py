"""What a circuit counts, and how many may trip: values and pure functions."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """What a series of results says to the circuit of one subscription.

    `before`: counted failures before the first success; `peak`: the most in a row;
    `after`: those after the last success; `succeeded`: whether there was one; `gone`: whether
    the receiver answered 410, which trips at once.
    """

    before: int = 0
    peak: int = 0
    after: int = 0
    succeeded: bool = False
    gone: bool = False


def tally(results: Iterable[bool | None], *, gone: bool = False) -> Tally:
    """Fold results in the order they came: True a success, False a failure that counts.

    None is a result that says nothing (an attempt with a quick retry left, a 429, a fault of
    our own).
    """
    before = peak = in_a_row = 0
    succeeded = False
    for result in results:
        if result is None:
            continue
        if result:
            succeeded = True
            in_a_row = 0
        else:
            in_a_row += 1
            peak = max(peak, in_a_row)
            if not succeeded:
                before = in_a_row
    return Tally(before=before, peak=peak, after=in_a_row, succeeded=succeeded, gone=gone)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one subscription's requests, made in one circuit epoch.

    `failed`: whether one of them failed, with `error`. `network`: whether these failures may be
    our own network's (no connection, a timeout, no address), so that they count for the fuse.
    `answered`: whether an HTTP answer came to any of them, whatever its status. `status_code` and
    `snippet`: the status and the beginning of the last failure's answer, for people to read.
    """

    subscription_id: uuid.UUID
    epoch: int
    tally: Tally
    error: str = ""
    failed: bool = False
    network: bool = False
    answered: bool = False
    status_code: int | None = None
    snippet: str = ""


def degraded_at(threshold: int) -> int:
    """The number of failures in a row that is worth a notice before the circuit trips.

    Three of five. With a threshold of one or two it is the trip itself.
    """
    return math.ceil(0.6 * threshold)


def allowed_trips(active: int, at_least: int, share: float) -> float:
    """How many of `active` subscriptions may trip within the fuse's window."""
    return max(at_least, share * active)
