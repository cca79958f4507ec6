"""What changes a circuit: single conditional UPDATEs, so that any number of workers agree.

Each says in its WHERE clause from which state it starts, and only the one that finds it wins.
Everything that changes rows in `subscriptions_subscription` locks them in the order of their ids,
before any lane and any delivery.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from django.db import connection, transaction

from subscriptions import audit, signals
from subscriptions.audit import Entry
from subscriptions.circuit import fuse
from subscriptions.circuit.rules import Report, Tally, degraded_at
from subscriptions.conf import conf
from subscriptions.database import prepared_cursor

logger = logging.getLogger(__name__)

# A circuit trips if a run of failures reaches the threshold, counted with those before, or by a
# 410; a success sets the count to what failed after it. A success never trips, however high the
# count is (because the fuse had blown, say). A row is changed by one UPDATE at a time, and each
# sees what the one before it left. The epoch makes results of requests that were sent before a
# trip, a reset or a change of URL or secret harmless. A success of a healthy subscription is
# written at most once a second: a row that changes thousands of times a second is all that the
# database would do.
#
# `reached`: an HTTP answer of a receiver whose failures may have been our own network's.
# `degrades`: the failures in a row have just become as many as are worth a notice.
_COUNT = """
WITH report AS MATERIALIZED (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(epochs)s::bigint[], %(before)s::int[], %(peak)s::int[],
        %(after)s::int[], %(succeeded)s::bool[], %(gone)s::bool[], %(failed)s::bool[],
        %(network)s::bool[], %(answered)s::bool[], %(errors)s::text[]
    ) AS r (id, epoch, before, peak, after, succeeded, gone, failed, network, answered, error)
),
locked AS MATERIALIZED (
    SELECT r.*, s.consecutive_failures AS counted,
        s.failing_by_network AND (r.succeeded OR r.answered) AS reached,
        r.gone OR (r.before > 0 AND s.consecutive_failures + r.before >= %(threshold)s)
            OR r.peak >= %(threshold)s AS trips
    FROM subscriptions_subscription s JOIN report r ON r.id = s.id
    WHERE s.circuit_epoch = r.epoch AND s.enabled AND (
        r.failed OR r.gone OR s.consecutive_failures > 0 OR s.last_error <> ''
        OR s.last_success_at IS NULL OR s.last_success_at < now() - interval '1 second'
    )
    ORDER BY s.id FOR NO KEY UPDATE OF s
)
UPDATE subscriptions_subscription s SET
    consecutive_failures = CASE WHEN r.succeeded THEN r.after
        ELSE s.consecutive_failures + r.after END,
    failing_since = CASE WHEN r.after > 0 AND (r.succeeded OR s.consecutive_failures = 0)
        THEN now() ELSE s.failing_since END,
    last_success_at = CASE WHEN r.succeeded THEN now() ELSE s.last_success_at END,
    last_failure_at = CASE WHEN r.failed THEN now() ELSE s.last_failure_at END,
    last_error = CASE WHEN r.failed THEN r.error WHEN r.succeeded THEN '' ELSE s.last_error END,
    failing_by_network = CASE WHEN r.network THEN true
        WHEN r.succeeded OR r.answered THEN false ELSE s.failing_by_network END,
    updated_at = now()
FROM locked r WHERE s.id = r.id AND s.enabled AND s.circuit_epoch = r.epoch
RETURNING s.id, r.trips, r.network AND NOT r.gone, r.reached,
    NOT r.trips AND (r.succeeded OR r.counted < %(degraded_at)s)
        AND s.consecutive_failures >= %(degraded_at)s,
    s.consecutive_failures, s.failing_since
"""

# The rows are locked since `_COUNT`; the WHERE clause lets one process win.
_TRIP = """
UPDATE subscriptions_subscription SET
    enabled = false, auto_disabled_at = now(), circuit_epoch = circuit_epoch + 1,
    probe_count = 0,
    next_probe_at = CASE WHEN recovery = 'automatic'
        THEN now() + %(probe_first)s * interval '1 second' END
WHERE id = ANY(%(ids)s::uuid[]) AND enabled AND auto_disabled_at IS NULL
RETURNING id, auto_disabled_at
"""


def record(reports: Sequence[Report]) -> list[uuid.UUID]:
    """Have the circuits count results of their requests; returns the subscriptions that tripped.

    Must run in a transaction: the caller holds the deliveries of what tripped in the same one.
    One report for each subscription. While the fuse is blown nothing trips whose failures may be
    our own network's.
    """
    reports = [report for report in reports if report.failed or report.tally != Tally()]
    if not reports:
        return []
    values = conf()
    with prepared_cursor() as cursor:
        cursor.execute(
            _COUNT,
            {
                "ids": [report.subscription_id for report in reports],
                "epochs": [report.epoch for report in reports],
                "before": [report.tally.before for report in reports],
                "peak": [report.tally.peak for report in reports],
                "after": [report.tally.after for report in reports],
                "succeeded": [report.tally.succeeded for report in reports],
                "gone": [report.tally.gone for report in reports],
                "failed": [report.failed for report in reports],
                "network": [report.network for report in reports],
                "answered": [report.answered for report in reports],
                "errors": [report.error for report in reports],
                "threshold": values.circuit_threshold,
                "degraded_at": degraded_at(values.circuit_threshold),
            },
        )
        counted = [_Counted(*row) for row in cursor.fetchall()]
        if any(one.reached for one in counted):
            fuse.reset(answered=True)
        tripping = [one.id for one in counted if one.trips and not one.by_network]
        unreached = [one.id for one in counted if one.trips and one.by_network]
        if unreached and fuse.holds(len(unreached)):
            tripping += unreached
        tripped: dict[uuid.UUID, datetime] = {}
        if tripping:
            cursor.execute(_TRIP, {"ids": tripping, "probe_first": values.probe_first})
            tripped = dict(cursor.fetchall())
    _write_entries(reports, counted, tripped)
    if tripped:
        signals.subscriptions_tripped.send(sender=None, subscription_ids=list(tripped))
    return list(tripped)


class _Counted(NamedTuple):
    """What `_COUNT` returns."""

    id: uuid.UUID
    trips: bool
    by_network: bool
    reached: bool
    degrades: bool
    failures: int
    failing_since: datetime | None


# A receiver that fails and succeeds by turns shows its first sign again and again.
DEGRADED_AT_MOST_EVERY = 3600


def _write_entries(
    reports: Sequence[Report],
    counted: Sequence[_Counted],
    tripped: Mapping[uuid.UUID, datetime],
) -> None:
    by_id = {report.subscription_id: report for report in reports}
    threshold = conf().circuit_threshold

    def entry(one: _Counted, key: object) -> Entry:
        report = by_id[one.id]
        detail = {
            "error": report.error,
            "status_code": report.status_code,
            "snippet": report.snippet,
            "failures": one.failures,
            "threshold": threshold,
            "first_failure_at": one.failing_since and one.failing_since.isoformat(),
        }
        return Entry(one.id, detail, f"{one.id}:{key}")

    trips = [
        entry(one, f"tripped:{tripped[one.id].isoformat()}") for one in counted if one.id in tripped
    ]
    audit.record("tripped", trips, by_system=True, notify=True)
    hour = int(time.time() // DEGRADED_AT_MOST_EVERY)
    degraded = [entry(one, f"degraded:{hour}") for one in counted if one.degrades]
    audit.record("degraded", degraded, by_system=True, notify=True)


_RESET = """
WITH disabled AS MATERIALIZED (
    SELECT id, auto_disabled_at AS tripped_at, failing_by_network
    FROM subscriptions_subscription
    WHERE id = ANY(%(ids)s::uuid[]) AND NOT enabled
        AND (
            %(epoch)s::bigint IS NULL
            OR (circuit_epoch = %(epoch)s AND auto_disabled_at IS NOT NULL)
        )
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE subscriptions_subscription s SET
    enabled = true, auto_disabled_at = NULL, consecutive_failures = 0, last_error = '',
    -- An operator's reset says nothing of our network, but the answer that follows does.
    failing_by_network = %(epoch)s::bigint IS NULL AND s.failing_by_network,
    circuit_epoch = circuit_epoch + 1, probe_count = 0, next_probe_at = NULL,
    last_success_at = CASE WHEN %(epoch)s::bigint IS NULL THEN last_success_at ELSE now() END,
    updated_at = now()
FROM disabled WHERE s.id = disabled.id AND NOT s.enabled
RETURNING s.id, disabled.tripped_at, disabled.failing_by_network
"""


def reset(
    subscription_ids: Iterable[uuid.UUID], *, discard_held: bool = False, epoch: int | None = None
) -> list[uuid.UUID]:
    """Enable disabled subscriptions, tripped or paused; returns those that this call enabled.

    Clears `auto_disabled_at`, `consecutive_failures` and `last_error`. Their held deliveries
    are sent, gently at first, or discarded. Harmless on what is enabled already; a second call
    changes nothing. Those that are active and backing off are sent to at once (`reset_backoff`).
    With `epoch`, only a circuit that is still in it (a probe's success).
    """
    ids = list(subscription_ids)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_RESET, {"ids": ids, "epoch": epoch})
        rows = cursor.fetchall()
        enabled = [row[0] for row in rows]
        tripped = {key: tripped_at for key, tripped_at, _ in rows if tripped_at is not None}
        # A probe's success is an answer. An operator's reset says nothing of our network.
        if epoch is not None and any(by_network for _, _, by_network in rows):
            fuse.reset(answered=True)
        held = {"held": "discarded" if discard_held else "sent"}
        audit.record(
            "reset" if epoch is None else "recovered",
            [
                Entry(key, {**held, "tripped_at": tripped_at.isoformat()})
                for key, tripped_at in tripped.items()
            ],
            by_system=epoch is not None,
            notify=True,
        )
        audit.record("resumed", [key for key in enabled if key not in tripped], detail=held)
        if enabled:
            signals.subscriptions_enabled.send(
                sender=None,
                subscription_ids=enabled,
                tripped_ids=list(tripped),
                discard_held=discard_held,
            )
        if epoch is None:
            reset_backoff(set(ids).difference(enabled))
    return enabled


def reset_backoff(subscription_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Have active subscriptions that are backing off sent to at once; returns which those were.

    Gently, one request at first. Results of requests that are in flight count for nothing then.
    Harmless on all others; a second call changes nothing.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM subscriptions_subscription WHERE id = ANY(%s::uuid[]) AND enabled "
            "ORDER BY id FOR NO KEY UPDATE",
            [list(subscription_ids)],
        )
        active = [row[0] for row in cursor.fetchall()]
        if not active:
            return []
        answers: list[tuple[Any, Any]] = signals.backoff_reset.send(
            sender=None, subscription_ids=active
        )
        backing_off = sorted({key for _, ids in answers for key in ids})
        if backing_off:
            begin_epoch(backing_off)
            audit.record("reset", backing_off, detail={"backoff": "ended"})
    return backing_off


_PAUSE = """
WITH locked AS MATERIALIZED (
    SELECT id, auto_disabled_at FROM subscriptions_subscription
    WHERE id = ANY(%(ids)s::uuid[])
        AND (enabled OR (%(tripped_too)s AND auto_disabled_at IS NOT NULL))
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE subscriptions_subscription s SET
    enabled = false, auto_disabled_at = NULL, probe_count = 0, next_probe_at = NULL,
    updated_at = now()
FROM locked WHERE s.id = locked.id
RETURNING s.id, locked.auto_disabled_at
"""


def pause(subscription_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Pause subscriptions, active or tripped (which ends its probes); returns what changed.

    What is pending is held and goes out on resume; events published meanwhile are not kept.
    `consecutive_failures` and `last_error` stay.
    """
    return _pause(subscription_ids, tripped_too=True)


def pause_active(subscription_ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """`pause`, but a tripped subscription stays tripped: it is disabled already."""
    return _pause(subscription_ids, tripped_too=False)


def _pause(subscription_ids: Iterable[uuid.UUID], *, tripped_too: bool) -> list[uuid.UUID]:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_PAUSE, {"ids": list(subscription_ids), "tripped_too": tripped_too})
        rows = cursor.fetchall()
        paused = [key for key, _ in rows]
        audit.record(
            "paused",
            [
                Entry(key, {"tripped_at": tripped_at.isoformat()} if tripped_at else {})
                for key, tripped_at in rows
            ],
        )
        if paused:
            signals.subscriptions_stopped.send(sender=None, subscription_ids=paused)
    return paused


def begin_epoch(subscription_ids: Iterable[uuid.UUID], *, new_receiver: bool = False) -> None:
    """Make results of requests that are in flight now count for nothing.

    `new_receiver`: the URL is another, so a backoff that the old one asked for is over.
    """
    ids = list(subscription_ids)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET circuit_epoch = circuit_epoch + 1 "
            "WHERE id = ANY(%s::uuid[])",
            [ids],
        )
        if new_receiver:
            signals.subscriptions_repointed.send(sender=None, subscription_ids=ids)


_PROBE_FAILED = """
WITH probed AS MATERIALIZED (
    SELECT id, failing_by_network FROM subscriptions_subscription
    WHERE id = %(id)s AND NOT enabled AND auto_disabled_at IS NOT NULL
        AND circuit_epoch = %(epoch)s
    FOR NO KEY UPDATE
)
UPDATE subscriptions_subscription s SET
    probe_count = least(probe_count + %(counts)s, 100), last_failure_at = now(),
    last_error = %(error)s, failing_by_network = s.failing_by_network AND NOT %(answered)s,
    next_probe_at = CASE WHEN recovery = 'automatic' THEN now() + least(
        %(max)s, %(first)s * power(2.0, least(probe_count + %(counts)s, 64))
    ) * interval '1 second' END,
    updated_at = now()
FROM probed WHERE s.id = probed.id
RETURNING probed.failing_by_network
"""


def record_failed_probe(
    subscription_id: uuid.UUID,
    epoch: int,
    error: str,
    *,
    counts: bool = True,
    answered: bool = False,
) -> None:
    """Keep a circuit tripped and plan its next probe: each counted failure doubles the time to it.

    Without `counts` (a fault of our own, a 429) the time is not doubled. `answered`: an HTTP
    answer came, if not the one that was hoped for.
    """
    values = conf()
    with connection.cursor() as cursor:
        cursor.execute(
            _PROBE_FAILED,
            {
                "id": subscription_id,
                "epoch": epoch,
                "error": error,
                "counts": int(counts),
                "answered": answered,
                "first": values.probe_first,
                "max": values.probe_most,
            },
        )
        found = cursor.fetchone()
    if found is None:
        return
    if found[0] and answered:
        fuse.reset(answered=True)
    logger.info(
        "A probe of subscription %s failed; it stays tripped: %s",
        subscription_id,
        signals.one_line(error),
    )


_PLAN_PROBES = """
UPDATE subscriptions_subscription SET next_probe_at = CASE WHEN recovery = 'automatic'
    THEN coalesce(next_probe_at, now() + %(first)s * interval '1 second') END
WHERE id = ANY(%(ids)s::uuid[]) AND NOT enabled AND auto_disabled_at IS NOT NULL
"""


def plan_probes(subscription_ids: Iterable[uuid.UUID]) -> None:
    """Let a change of `recovery` hold for what is tripped already."""
    with connection.cursor() as cursor:
        cursor.execute(_PLAN_PROBES, {"ids": list(subscription_ids), "first": conf().probe_first})
