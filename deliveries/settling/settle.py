"""Settling: what came of the requests, written down in one transaction.

The circuits are told, the lanes left, deliveries updated, attempts inserted. Locks are taken
in the order subscriptions, lanes, deliveries, as everywhere. A batch of successes is a single
statement.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import groupby
from uuid import UUID

from django.db import InterfaceError, InternalError, OperationalError, transaction

from deliveries.claiming.claims import ClaimedDelivery, ClaimedLane
from deliveries.judging.policy import OWN_FAULTS, Next, Verdict
from deliveries.keeping.holding import hold
from subscriptions import circuit, fuse, signals
from subscriptions.database import worker_cursor

logger = logging.getLogger(__name__)

# What the database raises when it is away, restarting, or (InternalError) read-only for a while.
AWAY = (OperationalError, InterfaceError, InternalError)

# Outcomes that may be our own network's fault: they count for the fuse.
NETWORK = frozenset({"timeout", "dns", "refused", "reset", "tls", "other"})


@dataclass(slots=True)
class Result:
    """What came of one request, and what follows from it.

    `started_at`: Unix time. `settled` is called once it is written down, or given up. `offered`:
    the database was given it before, and may have it, though its answer was an error.
    """

    lane: ClaimedLane
    delivery: ClaimedDelivery
    next: Next
    verdict: Verdict
    excused: bool
    outcome: str
    status_code: int | None
    error: str
    response_body: str
    remote_address: str
    started_at: float
    duration_ms: int
    settled: Callable[[bool], None]
    give_up_at: float = 0.0
    offered: bool = False


@dataclass(slots=True)
class LaneEnd:
    """A lane is left: with what was claimed but not sent, and how it is to go on.

    `rest`: seconds in which nothing is sent.
    """

    lane: ClaimedLane
    token: UUID
    unsent: list[ClaimedDelivery]
    window: int
    failures: int
    rest: float
    retrying_id: int | None


@dataclass(slots=True)
class Settled:
    """`wake_again`: lanes for which a wake-up came meanwhile. `tripped`: circuits that did.

    `given_up`: deliveries of which nothing can be written; they are sent again.
    """

    wake_again: set[UUID] = field(default_factory=set)
    tripped: set[UUID] = field(default_factory=set)
    given_up: set[int] = field(default_factory=set)


def settle(results: Sequence[Result], ends: Sequence[LaneEnd]) -> Settled:
    """Write down `results` and leave the lanes of `ends`.

    A row that cannot be written never fails the others: the batch is then settled one by one,
    and the bad one ends as failed, with the reason. Raises what the database raises when it is
    away, or a row is locked for too long (`OperationalError`, `InterfaceError`); the same call
    may be made again then.
    """
    try:
        return _settle(results, ends)
    except AWAY:
        raise
    except Exception:
        logger.exception("a result could not be written; settling %d singly", len(results))
    settled = Settled()
    for result in results:
        try:
            settled.tripped |= _settle([result], []).tripped
        except AWAY:
            raise
        except Exception as error:
            try:
                settled.tripped |= _settle([_unwritable(result, error)], []).tripped
            except AWAY:
                raise
            except Exception:
                logger.exception("nothing can be written of delivery %d", result.delivery.id)
                settled.given_up.add(result.delivery.id)
    settled.wake_again = _settle([], ends).wake_again
    return settled


def _settle(results: Sequence[Result], ends: Sequence[LaneEnd]) -> Settled:
    """All of it or nothing; but of nothing but successes, the fuse is mended after."""
    new = _unrecorded(results)
    if all(one.verdict is Verdict.SUCCESS and not one.lane.probe for one in results):
        settled = _write(results, ends, successes=_successes(new))
    else:
        # The circuits first: what trips is held.
        with transaction.atomic(), worker_cursor():
            tripped = _tell_circuits(new)
            settled = _write(results, ends, tripped=tripped)
            if tripped:
                hold(list(tripped))
    for result in results:
        result.lane.told |= result.verdict is Verdict.SUCCESS
    return settled


_RECORDED = """
SELECT a.delivery_id, a.number FROM unnest(%(ids)s::bigint[], %(numbers)s::int[])
    AS r (delivery_id, number)
JOIN deliveries_attempt a USING (delivery_id, number)
WHERE a.outcome <> 'unknown'
"""


def _unrecorded(results: Sequence[Result]) -> Sequence[Result]:
    """The results whose attempts are not recorded yet: only these count for the circuits.

    A commit whose answer was lost has recorded its attempts, and counted them.
    """
    repeated = [one for one in results if one.offered]
    for one in results:
        one.offered = True
    if not repeated:
        return results
    with worker_cursor() as cursor:
        cursor.execute(
            _RECORDED,
            {
                "ids": [one.delivery.id for one in repeated],
                "numbers": [one.delivery.attempt_count + 1 for one in repeated],
            },
        )
        recorded = set(cursor.fetchall())
    return [
        one for one in results if (one.delivery.id, one.delivery.attempt_count + 1) not in recorded
    ]


def _mend_fuse(at: datetime) -> None:
    """In a statement of its own: who trips holds the fuse's row, and the successes are written."""
    try:
        fuse.mend(at)
    except Exception:
        signals.hand_over(partial(fuse.mend, at))


def _unwritable(result: Result, error: Exception) -> Result:
    return replace(
        result,
        next=Next("failed", None, retries_used=result.delivery.retries_used),
        verdict=Verdict.FINAL,
        outcome="unwritable",
        status_code=None,
        error=f"the result could not be recorded ({type(error).__name__})",
        response_body="",
        remote_address="",
        duration_ms=0,
    )


def _tell_circuits(results: Sequence[Result]) -> set[UUID]:
    reports: dict[UUID, circuit.Report] = {}
    in_order = sorted(results, key=lambda one: (one.lane.subscription_id, one.lane.epoch))
    for (subscription_id, epoch), group in groupby(
        in_order, key=lambda one: (one.lane.subscription_id, one.lane.epoch)
    ):
        batch = list(group)
        if batch[0].lane.probe:
            _tell_probed(batch[0])
            continue
        failed = [one for one in batch if one.verdict is not Verdict.SUCCESS]
        if not failed and not _worth_telling(batch[0].lane):
            continue
        # The highest epoch comes last and wins; older ones count for nothing anyway.
        reports[subscription_id] = circuit.Report(
            subscription_id,
            epoch,
            circuit.tally(
                (one.next.result for one in batch),
                gone=any(one.verdict is Verdict.GONE for one in batch),
            ),
            error=failed[-1].error if failed else "",
            failed=bool(failed),
            network=_by_network(failed),
            answered=any(one.status_code is not None for one in batch),
        )
    return set(circuit.record(list(reports.values())))


def _by_network(failed: Sequence[Result]) -> bool:
    """Whether the last of these failures that was the receiver's may be our network's as well."""
    outcomes = [one.outcome for one in failed if one.outcome not in OWN_FAULTS]
    return bool(outcomes) and outcomes[-1] in NETWORK


def _successes(results: Sequence[Result]) -> list[ClaimedLane]:
    """The lanes of these successes whose circuits have to hear of them."""
    lanes = {}
    for lane in sorted((one.lane for one in results), key=lambda lane: lane.epoch):
        if _worth_telling(lane):
            lanes[lane.subscription_id] = lane
    return list(lanes.values())


def _worth_telling(lane: ClaimedLane) -> bool:
    """Whether a success tells the circuit anything: of a healthy one, once for each claim, and
    only if it had heard of none in the second before.

    Nobody else sends for it meanwhile, so its count cannot have grown.
    """
    return not (lane.well and lane.told)


def _tell_probed(result: Result) -> None:
    lane = result.lane
    if result.verdict is Verdict.SUCCESS:
        circuit.reset([lane.subscription_id], epoch=lane.epoch)
    else:
        circuit.record_failed_probe(
            lane.subscription_id,
            lane.epoch,
            result.error,
            counts=not result.excused,
            answered=result.status_code is not None,
        )


# A success is a success, whatever happened to the delivery meanwhile: the receiver has it. Any
# other result counts only while this claim's lease is the delivery's: later claims know better.
# What was held or discarded while its request was in flight stays so. Written twice, because the
# connection was lost with the commit's answer, a result is one attempt; and one that comes after
# its lease was over takes the place of the attempt that was put down as unknown. All of it comes
# as JSON: for PostgreSQL it is as quick to read as arrays, for Python six times as quick to make.
#
# Of lanes that are left: what was learned of an older epoch, before a reset or of another URL, is
# forgotten, and what was claimed but not sent is given back. Circuits, lanes and deliveries wait
# for each other, in the order in which everybody takes locks; where the planner finds another, one
# of two that lock each other out is told to try again.
_SETTLE = f"""
WITH {circuit.SUCCESSES}, ending AS MATERIALIZED (
    SELECT l.subscription_id, l.wake_again, e."window", e.failures, e.rest, e.retrying_id,
        coalesce(s.circuit_epoch = e.epoch, false) AS current
    FROM jsonb_to_recordset(%(ends)s::jsonb) AS e (
        subscription_id uuid, token uuid, epoch bigint, "window" int, failures int, rest float8,
        retrying_id bigint
    )
    JOIN deliveries_lane l ON l.subscription_id = e.subscription_id AND l.lease_token = e.token
    LEFT JOIN subscriptions_subscription s ON s.id = e.subscription_id
    WHERE (SELECT count(*) FROM counted) >= 0
    ORDER BY l.subscription_id FOR UPDATE OF l
), departed AS (
    UPDATE deliveries_lane lane SET
        lease_token = NULL, lease_until = NULL, wake_again = false,
        "window" = CASE WHEN current THEN ending."window" ELSE lane."window" END,
        failures = CASE WHEN current THEN ending.failures ELSE lane.failures END,
        retrying_id = CASE WHEN current THEN ending.retrying_id ELSE lane.retrying_id END,
        resume_at = CASE
            WHEN NOT current THEN lane.resume_at
            WHEN ending.rest > 0 THEN now() + ending.rest * interval '1 second' END
    FROM ending WHERE lane.subscription_id = ending.subscription_id
    RETURNING lane.subscription_id, ending.wake_again
), result AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(results)s::jsonb) AS r (
        id bigint, lease timestamptz, status text, delay float8, retries int, number int,
        outcome text, code int, error text, body text, address text, started float8, duration int
    ) WHERE (SELECT count(*) FROM departed) >= 0 ORDER BY id
), updated AS (
    UPDATE deliveries_delivery d SET
        status = CASE
            WHEN r.status = 'succeeded' THEN 'succeeded'
            WHEN d.lease_until IS DISTINCT FROM r.lease THEN d.status
            WHEN d.status = 'pending' THEN r.status
            WHEN d.status = 'held' AND r.status = 'failed' THEN 'failed'
            ELSE d.status END,
        next_attempt_at = CASE
            WHEN r.status = 'succeeded' THEN NULL
            WHEN d.lease_until IS DISTINCT FROM r.lease THEN d.next_attempt_at
            WHEN d.status = 'pending' AND r.status = 'pending'
                THEN now() + r.delay * interval '1 second' END,
        held_at = CASE
            WHEN d.status = 'pending' AND r.status = 'held' THEN now() ELSE d.held_at END,
        finished_at = CASE
            WHEN r.status = 'succeeded' OR (
                r.status = 'failed' AND d.status IN ('pending', 'held')
                AND d.lease_until IS NOT DISTINCT FROM r.lease
            ) THEN now() ELSE d.finished_at END,
        retries_used = CASE
            WHEN d.status = 'pending' AND d.lease_until IS NOT DISTINCT FROM r.lease
                THEN r.retries
            ELSE d.retries_used END,
        last_error = CASE
            WHEN r.status = 'succeeded' THEN ''
            WHEN d.status IN ('pending', 'held')
                AND d.lease_until IS NOT DISTINCT FROM r.lease THEN r.error
            ELSE d.last_error END,
        attempt_count = greatest(d.attempt_count, r.number),
        lease_until = CASE
            WHEN r.status = 'succeeded' OR d.lease_until IS NOT DISTINCT FROM r.lease THEN NULL
            ELSE d.lease_until END
    FROM result r WHERE d.id = r.id
), attempt AS (
    INSERT INTO deliveries_attempt (
        delivery_id, number, outcome, status_code, error, response_body, remote_address,
        started_at, duration_ms
    )
    SELECT id, number, outcome, code, error, body, address, to_timestamp(started), duration
    FROM result
    ON CONFLICT (delivery_id, number) DO UPDATE SET
        outcome = excluded.outcome, status_code = excluded.status_code, error = excluded.error,
        response_body = excluded.response_body, remote_address = excluded.remote_address,
        started_at = excluded.started_at, duration_ms = excluded.duration_ms
    WHERE deliveries_attempt.outcome = 'unknown'
), given_back AS (
    UPDATE deliveries_delivery d SET lease_until = NULL
    FROM (
        SELECT * FROM unnest(%(unsent)s::bigint[], %(leases)s::timestamptz[]) AS u (id, lease)
        ORDER BY id
    ) u
    WHERE d.id = u.id AND d.lease_until = u.lease
        AND u.id NOT IN (SELECT id FROM result WHERE status = 'succeeded')
)
SELECT ARRAY(SELECT subscription_id FROM departed WHERE wake_again),
    (SELECT now() FROM counted WHERE recovered LIMIT 1)
"""


def _write(
    results: Sequence[Result],
    ends: Sequence[LaneEnd],
    *,
    tripped: Collection[UUID] = (),
    successes: Sequence[ClaimedLane] = (),
) -> Settled:
    """One statement for all; `successes` are lanes whose circuits hear of nothing else."""
    # In the order of ids, so that two settlements, or one and an operator, do not lock each
    # other out; should the planner choose otherwise, one of them is told to try again.
    rows = [
        {
            "id": one.delivery.id,
            "lease": one.lane.lease,
            # Nothing is lost by tripping: a last retry that trips the circuit is held like the
            # rest, and a probe that fails leaves its delivery held.
            "status": "held"
            if one.next.exhausted and (one.lane.probe or one.lane.subscription_id in tripped)
            else one.next.status,
            "delay": one.next.delay,
            "retries": one.next.retries_used,
            "number": one.delivery.attempt_count + 1,
            "outcome": one.outcome,
            "code": one.status_code,
            "error": one.error,
            "body": one.response_body,
            "address": one.remote_address,
            "started": one.started_at,
            "duration": one.duration_ms,
        }
        for one in results
    ]
    departures = [
        {
            "subscription_id": str(end.lane.subscription_id),
            "token": str(end.token),
            "epoch": end.lane.epoch,
            "window": end.window,
            "failures": end.failures,
            "rest": end.rest,
            "retrying_id": end.retrying_id,
        }
        for end in ends
    ]
    with worker_cursor() as cursor:
        cursor.execute(
            _SETTLE,
            {
                "well": [lane.subscription_id for lane in successes],
                "well_epochs": [lane.epoch for lane in successes],
                "ends": json.dumps(departures),
                "results": json.dumps(rows),
                "unsent": [one.id for end in ends for one in end.unsent],
                "leases": [end.lane.lease for end in ends for _ in end.unsent],
            },
        )
        wake_again, recovered_at = cursor.fetchone()
    if recovered_at is not None:
        _mend_fuse(recovered_at)
    return Settled(wake_again=set(wake_again), tripped=set(tripped))
