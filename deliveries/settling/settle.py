"""Settling: what came of the requests is written down, and lanes are released.

A batch of successes is one statement. Where something failed, the circuits count it in the same
transaction, and count only attempts that it recorded: so a result that is settled twice counts
once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

from django.db import transaction

from deliveries.holding import hold
from deliveries.judging.policy import NETWORK_FAULTS, OWN_FAULTS, Next, Outcome, Verdict
from deliveries.judging.response import Judged
from deliveries.settling.statements import (
    EXISTING_SUBSCRIPTIONS,
    LOCK_SUBSCRIPTIONS,
    RECORD_ATTEMPTS,
    SETTLE,
)
from deliveries.values import LaneEnd, Result
from subscriptions import circuit, signals
from subscriptions.circuit import fuse
from subscriptions.database import DATABASE_ERRORS, WorkerCursor, as_array, worker_cursor

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Settled:
    """What became of a batch.

    `wake_again`: released lanes for which a wake-up came meanwhile. `tripped`: circuits that
    tripped. `given_up`: deliveries of which nothing can be written; they are sent again.
    `locked_results` (delivery ids) and `locked_ends` (subscription ids): not written, because
    another transaction has locked their rows; to be offered again a little later. `written`: the
    results that were written, each with the status that it gave its delivery.
    """

    wake_again: set[UUID] = field(default_factory=set)
    tripped: set[UUID] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)
    locked_results: set[int] = field(default_factory=set)
    locked_ends: set[UUID] = field(default_factory=set)
    written: list[tuple[Result, str]] = field(default_factory=list)

    def add(self, other: Settled) -> None:
        self.wake_again |= other.wake_again
        self.tripped |= other.tripped
        self.given_up |= other.given_up
        self.locked_results |= other.locked_results
        self.locked_ends |= other.locked_ends
        self.written += other.written


def settle(
    results: Sequence[Result],
    ends: Sequence[LaneEnd],
    *,
    repeated: bool = False,
    uncounted: Collection[UUID] = (),
) -> Settled:
    """Write down `results` and release the lanes of `ends`.

    `uncounted`: subscriptions whose rows are locked for so long that their circuits are not
    waited for any more: what was sent must be written before its lease ends.
    `repeated`: the same call was made before, and may have been written though it failed.

    A row that cannot be written never fails the others: the batch is then settled one by one,
    and the bad one ends as failed, with the reason. Raises `DATABASE_ERRORS` when the database
    is unreachable; the same call may be made again then, and counts nothing twice.
    """
    failing = {
        result.lane.subscription_id
        for result in results
        if repeated or result.judged.outcome.verdict is not Verdict.SUCCESS or result.lane.probe
    }
    settled = Settled()
    for plain in (True, False):
        some = [
            result for result in results if (result.lane.subscription_id in failing) is not plain
        ]
        some_ends = [end for end in ends if (end.lane.subscription_id in failing) is not plain]
        if some or some_ends:
            write = partial(_settle_plain if plain else _settle_all, uncounted=uncounted)
            settled.add(_settle_safely(some, some_ends, write))
    return settled


def _settle_safely(results: Sequence[Result], ends: Sequence[LaneEnd], write: Any) -> Settled:
    try:
        return write(results, ends)  # type: ignore[no-any-return]
    except DATABASE_ERRORS:
        raise
    except Exception:
        logger.exception("A result could not be written; settling %d singly.", len(results))
    settled = Settled()
    for result in results:
        try:
            settled.add(write([result], []))
        except DATABASE_ERRORS:
            raise
        except Exception as error:
            try:
                settled.add(write([_unwritable(result, error)], []))
            except DATABASE_ERRORS:
                raise
            except Exception:
                logger.exception("Nothing can be written of delivery %d.", result.delivery.id)
                settled.given_up.add(result.delivery.id)
    unsettled = {result.lane.subscription_id for result in results if _is_locked(result, settled)}
    settled.add(write([], [end for end in ends if end.lane.subscription_id not in unsettled]))
    settled.locked_ends |= unsettled & {end.lane.subscription_id for end in ends}
    return settled


def _is_locked(result: Result, settled: Settled) -> bool:
    return result.delivery.id in settled.locked_results


def _unwritable(result: Result, error: Exception) -> Result:
    return replace(
        result,
        next=Next("failed", None, retries_used=result.delivery.retries_used),
        judged=Judged(
            Outcome(Verdict.FINAL, excused=True),
            "unwritable",
            error=f"the result could not be recorded ({type(error).__name__})",
        ),
    )


def _settle_plain(
    results: Sequence[Result], ends: Sequence[LaneEnd], *, uncounted: Collection[UUID]
) -> Settled:
    """Nothing but successes, of which no circuit trips: one statement, which commits by itself."""
    lanes = {}
    for lane in sorted((result.lane for result in results), key=lambda lane: lane.epoch):
        # The highest epoch comes last and wins; older ones count for nothing anyway.
        if lane.subscription_id not in uncounted:
            lanes[lane.subscription_id] = lane.epoch
    with worker_cursor() as cursor:
        settled, recovered_at = _write(cursor, results, ends, healthy=lanes)
    if recovered_at is not None:
        # By another thread: a process that trips a circuit holds the lock on the fuse's row, and
        # the successes are written already.
        signals.hand_over(partial(fuse.reset, recovered_at, answered=True))
    return settled


def _settle_all(
    results: Sequence[Result], ends: Sequence[LaneEnd], *, uncounted: Collection[UUID]
) -> Settled:
    """The circuits first: what trips is held. All of it or nothing."""
    wanted = {result.lane.subscription_id for result in results}.difference(uncounted)
    with transaction.atomic(), worker_cursor() as cursor:
        locked = _lock(cursor, wanted)
        writable = [result for result in results if result.lane.subscription_id not in locked]
        recorded = _record_attempts(cursor, writable)
        tripped = _count_for_circuits(
            [
                result
                for result in writable
                if (result.delivery.id, _number(result)) in recorded
                and result.lane.subscription_id in wanted
            ]
        )
        settled, _ = _write(
            cursor,
            writable,
            [end for end in ends if end.lane.subscription_id not in locked],
            tripped=tripped,
        )
        if tripped:
            hold(list(tripped))
    settled.tripped = tripped
    settled.locked_results |= {
        result.delivery.id for result in results if result.lane.subscription_id in locked
    }
    settled.locked_ends |= locked & {end.lane.subscription_id for end in ends}
    return settled


def _lock(cursor: Any, subscription_ids: Collection[UUID]) -> set[UUID]:
    """Lock these subscriptions; returns those that another transaction has locked."""
    cursor.execute(LOCK_SUBSCRIPTIONS, {"ids": list(subscription_ids)})
    missing = set(subscription_ids) - {row[0] for row in cursor.fetchall()}
    if not missing:
        return set()
    cursor.execute(EXISTING_SUBSCRIPTIONS, {"ids": list(missing)})
    return {row[0] for row in cursor.fetchall()}


def _record_attempts(cursor: Any, results: Sequence[Result]) -> set[tuple[int, int]]:
    if not results:
        return set()
    rows = [_row(result, result.next.status) for result in results]
    cursor.execute(RECORD_ATTEMPTS, {"results": json.dumps(rows)})
    return set(cursor.fetchall())


def _count_for_circuits(results: Sequence[Result]) -> set[UUID]:
    """Have the circuits count these results; returns those that tripped."""
    reports: dict[UUID, circuit.Report] = {}
    in_order = sorted(results, key=lambda result: (result.lane.subscription_id, result.lane.epoch))
    for (subscription_id, epoch), group in groupby(
        in_order, key=lambda result: (result.lane.subscription_id, result.lane.epoch)
    ):
        batch = list(group)
        if batch[0].lane.probe:
            _count_probe(batch[0])
            continue
        failed = [
            result for result in batch if result.judged.outcome.verdict is not Verdict.SUCCESS
        ]
        # The highest epoch comes last and wins; older ones count for nothing anyway.
        reports[subscription_id] = circuit.Report(
            subscription_id,
            epoch,
            circuit.tally(
                (result.next.result for result in batch),
                gone=any(result.judged.outcome.verdict is Verdict.GONE for result in batch),
            ),
            error=failed[-1].judged.error if failed else "",
            failed=bool(failed),
            network=_by_network(failed),
            answered=any(result.judged.status_code is not None for result in batch),
            status_code=failed[-1].judged.status_code if failed else None,
            snippet=failed[-1].judged.response_body if failed else "",
        )
    return set(circuit.record(list(reports.values())))


def _count_probe(result: Result) -> None:
    lane = result.lane
    if result.judged.outcome.verdict is Verdict.SUCCESS:
        circuit.reset([lane.subscription_id], epoch=lane.epoch)
    else:
        circuit.record_failed_probe(
            lane.subscription_id,
            lane.epoch,
            result.judged.error,
            counts=not result.judged.outcome.excused,
            answered=result.judged.status_code is not None,
        )


def _by_network(failed: Sequence[Result]) -> bool:
    """Whether the last of these failures that was the receiver's may be our network's as well."""
    codes = [result.judged.code for result in failed if result.judged.code not in OWN_FAULTS]
    return bool(codes) and codes[-1] in NETWORK_FAULTS


def _write(
    cursor: WorkerCursor,
    results: Sequence[Result],
    ends: Sequence[LaneEnd],
    *,
    tripped: Collection[UUID] = (),
    healthy: dict[UUID, int] | None = None,
) -> tuple[Settled, Any]:
    """One statement for all; `healthy` are circuits with nothing but successes in it."""
    healthy = healthy or {}
    statuses = [_status(result, tripped) for result in results]
    cursor.execute(
        SETTLE,
        {
            # A text is made six times as quickly as an array.
            "healthy": as_array(healthy),
            "healthy_epochs": as_array(healthy.values()),
            "ends": json.dumps([_end_row(end) for end in ends]),
            "results": json.dumps(list(map(_row, results, statuses))),
            "unsent": as_array(delivery.id for end in ends for delivery in end.unsent),
            "leases": as_array(f'"{end.lane.lease}"' for end in ends for _ in end.unsent),
        },
    )
    wake_again, locked_results, locked_ends, recovered_at = cursor.fetchone()
    settled = Settled(
        wake_again=set(wake_again),
        locked_results=set(locked_results),
        locked_ends=set(locked_ends),
    )
    settled.written = [
        written
        for written in zip(results, statuses, strict=True)
        if written[0].delivery.id not in settled.locked_results
    ]
    return settled, recovered_at


def _number(result: Result) -> int:
    return result.delivery.attempt_count + 1


def _status(result: Result, tripped: Collection[UUID]) -> str:
    lane = result.lane
    # Nothing is lost by tripping: a last retry that trips the circuit is held like the others,
    # and a probe that fails leaves its delivery held.
    if result.next.exhausted and (lane.probe or lane.subscription_id in tripped):
        return "held"
    return result.next.status


def _row(result: Result, status: str) -> dict[str, Any]:
    judged, following = result.judged, result.next
    return {
        "id": result.delivery.id,
        "lease": result.lane.lease,
        "status": status,
        "delay": following.delay,
        "retries": following.retries_used,
        "number": result.delivery.attempt_count + 1,
        "outcome": judged.code,
        "code": judged.status_code,
        "error": judged.error,
        "body": judged.response_body,
        "address": judged.remote_address,
        "started": result.started_at,
        "duration": judged.duration_ms,
    }


def _end_row(end: LaneEnd) -> dict[str, Any]:
    return {
        "subscription_id": str(end.lane.subscription_id),
        "token": str(end.lane.token),
        "epoch": end.lane.epoch,
        "window": end.window,
        "failures": end.failures,
        "backoff": end.backoff,
        "reason": end.backoff_reason,
        "retrying_id": end.retrying_id,
    }


def unsettled(
    settled: Settled, results: Iterable[Result], ends: Iterable[LaneEnd]
) -> tuple[list[Result], list[LaneEnd]]:
    """What is to be offered again, because another transaction has locked its rows."""
    return (
        [result for result in results if result.delivery.id in settled.locked_results],
        [end for end in ends if end.lane.subscription_id in settled.locked_ends],
    )
