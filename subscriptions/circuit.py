"""The circuit of a subscription: counting, tripping, resetting, probing.

What is decided (`tally`, `probe_delay`) are pure functions on values. What is done are single
conditional UPDATEs, so that any number of workers agree: each says in its WHERE clause from
which state it starts, and only the one that finds it wins. Everything that changes rows in
`subscriptions_subscription` locks them in the order of their ids, before any delivery.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from django.db import connection, transaction
from django.dispatch import Signal

from subscriptions import fuse, signals
from subscriptions.conf import conf
from subscriptions.database import prepared_cursor

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tally:
    """What a series of results says to the circuit of one subscription.

    `before`: counted failures before the first success; `peak`: the longest run of them;
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
    before = peak = run = 0
    succeeded = False
    for result in results:
        if result is None:
            continue
        if result:
            succeeded = True
            run = 0
        else:
            run += 1
            peak = max(peak, run)
            if not succeeded:
                before = run
    return Tally(before=before, peak=peak, after=run, succeeded=succeeded, gone=gone)


def count_after(count: int, results: Tally) -> int:
    """The consecutive failures after `results`, given those before."""
    return results.after if results.succeeded else count + results.after


def trips(count: int, results: Tally, threshold: int) -> bool:
    """Whether a failure among `results` brings a circuit with `count` failures to `threshold`.

    A success never does, however high the count is: because the fuse had blown, say.
    """
    reached = results.before > 0 and count + results.before >= threshold
    return results.gone or reached or results.peak >= threshold


def probe_delay(probes: int, first: float, most: float) -> float:
    """Seconds until the next probe, after `probes` that failed: `first`, doubled up to `most`."""
    return min(most, first * 2.0 ** min(probes, 64))


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one subscription's requests, made in one circuit epoch."""

    subscription_id: uuid.UUID
    epoch: int
    tally: Tally
    error: str = ""
    failed: bool = False


# `trips` and `count_after`, once more where twenty workers can agree on them: a row is changed
# by one UPDATE at a time, and each sees what the one before it left. The epoch makes results of
# requests that were sent before a trip, a reset or a change of URL or secret harmless. A success
# of a healthy subscription is written at most once a second: a row that changes thousands of
# times a second is all that the database would do.
_COUNT = """
WITH report AS MATERIALIZED (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(epochs)s::bigint[], %(before)s::int[], %(peak)s::int[],
        %(after)s::int[], %(succeeded)s::bool[], %(gone)s::bool[], %(failed)s::bool[],
        %(errors)s::text[]
    ) AS r (id, epoch, before, peak, after, succeeded, gone, failed, error)
),
locked AS MATERIALIZED (
    SELECT r.*, r.succeeded AND s.consecutive_failures > 0 AS recovered,
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
    last_success_at = CASE WHEN r.succeeded THEN now() ELSE s.last_success_at END,
    last_failure_at = CASE WHEN r.failed THEN now() ELSE s.last_failure_at END,
    last_error = CASE WHEN r.failed THEN r.error WHEN r.succeeded THEN '' ELSE s.last_error END,
    updated_at = now()
FROM locked r WHERE s.id = r.id AND s.enabled AND s.circuit_epoch = r.epoch
RETURNING s.id, r.trips, r.recovered, r.gone
"""

# The same for subscriptions of which nothing but successes is told: as CTEs, for the statement
# that settles them. `counted` has a row for each that was changed.
SUCCESSES = """
succeeding AS MATERIALIZED (
    SELECT s.id, r.epoch, s.consecutive_failures > 0 AS recovered
    FROM unnest(%(well)s::uuid[], %(well_epochs)s::bigint[]) AS r (id, epoch)
    JOIN subscriptions_subscription s ON s.id = r.id
    WHERE s.circuit_epoch = r.epoch AND s.enabled AND (
        s.consecutive_failures > 0 OR s.last_error <> ''
        OR s.last_success_at IS NULL OR s.last_success_at < now() - interval '1 second'
    )
    ORDER BY s.id FOR NO KEY UPDATE OF s
), counted AS (
    UPDATE subscriptions_subscription s SET
        consecutive_failures = 0, last_error = '', last_success_at = now(), updated_at = now()
    FROM succeeding r WHERE s.id = r.id AND s.enabled AND s.circuit_epoch = r.epoch
    RETURNING r.recovered
)"""

# The rows are locked since `_COUNT`; the WHERE clause lets one win, whoever else tries.
_TRIP = """
UPDATE subscriptions_subscription SET
    enabled = false, auto_disabled_at = now(), circuit_epoch = circuit_epoch + 1,
    probe_count = 0,
    next_probe_at = CASE WHEN recovery = 'automatic'
        THEN now() + %(probe_first)s * interval '1 second' END
WHERE id = ANY(%(ids)s::uuid[]) AND enabled AND auto_disabled_at IS NULL
RETURNING id
"""


def record(reports: Sequence[Report]) -> list[uuid.UUID]:
    """Tell the circuits what came of their requests; returns the subscriptions that tripped.

    Must run in a transaction: the caller holds the deliveries of what tripped in the same one.
    One report for each subscription. While the fuse is blown nothing trips, short of a 410.
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
                "errors": [report.error for report in reports],
                "threshold": values.circuit_threshold,
            },
        )
        rows = cursor.fetchall()
        if any(recovered for _, _, recovered, _ in rows):
            fuse.mend()
        gone = [key for key, _, _, is_gone in rows if is_gone]
        failing = [key for key, trips_now, _, is_gone in rows if trips_now and not is_gone]
        tripping = gone + (failing if failing and fuse.holds(len(failing)) else [])
        if not tripping:
            return []
        cursor.execute(_TRIP, {"ids": tripping, "probe_first": values.probe_first})
        tripped = [row[0] for row in cursor.fetchall()]
    _announce(signals.circuit_tripped, tripped)
    return tripped


_RESET = """
WITH disabled AS MATERIALIZED (
    SELECT id, auto_disabled_at IS NOT NULL AS tripped FROM subscriptions_subscription
    WHERE id = ANY(%(ids)s::uuid[]) AND NOT enabled
        AND (
            %(epoch)s::bigint IS NULL
            OR (circuit_epoch = %(epoch)s AND auto_disabled_at IS NOT NULL)
        )
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE subscriptions_subscription s SET
    enabled = true, auto_disabled_at = NULL, consecutive_failures = 0, last_error = '',
    circuit_epoch = circuit_epoch + 1, probe_count = 0, next_probe_at = NULL,
    last_success_at = CASE WHEN %(epoch)s::bigint IS NULL THEN last_success_at ELSE now() END,
    updated_at = now()
FROM disabled WHERE s.id = disabled.id AND NOT s.enabled
RETURNING s.id, disabled.tripped
"""


def reset(
    subscription_ids: Iterable[uuid.UUID], *, discard_held: bool = False, epoch: int | None = None
) -> list[uuid.UUID]:
    """Enable disabled subscriptions, tripped or paused; returns those that this call enabled.

    Clears `auto_disabled_at`, `consecutive_failures` and `last_error`. Their held deliveries
    are sent, gently at first, or discarded. Harmless on what is enabled already; a second call
    changes nothing. With `epoch`, only a circuit that is still in it (a probe's success).
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_RESET, {"ids": list(subscription_ids), "epoch": epoch})
        rows = cursor.fetchall()
        enabled = [row[0] for row in rows]
        if enabled:
            fuse.mend()
            signals.subscriptions_enabled.send(
                sender=None, subscription_ids=enabled, discard_held=discard_held
            )
            _announce(signals.circuit_reset, [row[0] for row in rows if row[1]])
    return enabled


_PAUSE = """
WITH locked AS MATERIALIZED (
    SELECT id, enabled FROM subscriptions_subscription
    WHERE id = ANY(%(ids)s::uuid[])
        AND (enabled OR (%(tripped_too)s AND auto_disabled_at IS NOT NULL))
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE subscriptions_subscription s SET
    enabled = false, auto_disabled_at = NULL, probe_count = 0, next_probe_at = NULL,
    updated_at = now()
FROM locked WHERE s.id = locked.id
RETURNING s.id
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
        paused = [row[0] for row in cursor.fetchall()]
        if paused:
            signals.subscriptions_stopped.send(sender=None, subscription_ids=paused)
    return paused


def begin_epoch(subscription_ids: Iterable[uuid.UUID], *, new_receiver: bool = False) -> None:
    """Make results of requests that are in flight now count for nothing.

    `new_receiver`: the URL is another, so what the old one asked for, a rest say, is over.
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
UPDATE subscriptions_subscription SET
    probe_count = least(probe_count + %(counts)s, 100), last_failure_at = now(),
    last_error = %(error)s,
    next_probe_at = now() + least(
        %(most)s, %(first)s * power(2.0, least(probe_count + %(counts)s, 64))
    ) * interval '1 second',
    updated_at = now()
WHERE id = %(id)s AND NOT enabled AND auto_disabled_at IS NOT NULL AND circuit_epoch = %(epoch)s
"""


def record_failed_probe(
    subscription_id: uuid.UUID, epoch: int, error: str, *, counts: bool = True
) -> None:
    """Keep a circuit tripped and plan its next probe (`probe_delay`).

    Without `counts` (a fault of our own, a 429) the time to it is not doubled.
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
                "first": values.probe_first,
                "most": values.probe_most,
            },
        )
        failed = bool(cursor.rowcount)
    if failed:
        logger.info(
            "A probe of subscription %s failed; it stays tripped: %s",
            subscription_id,
            _one_line(error),
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


def _announce(signal: Signal, subscription_ids: list[uuid.UUID]) -> None:
    if not subscription_ids:
        return
    signals.after_commit(partial(_send, signal, subscription_ids))


def _send(signal: Signal, subscription_ids: list[uuid.UUID]) -> None:
    from subscriptions.models import Subscription

    for subscription in Subscription.objects.filter(pk__in=subscription_ids):
        if signal is signals.circuit_tripped:
            logger.warning(
                "The circuit of subscription %s (%s) tripped after %d failures in a row; its "
                "deliveries are held. Last error: %s",
                subscription.name,
                subscription.pk,
                subscription.consecutive_failures,
                _one_line(subscription.last_error),
            )
        else:
            logger.info(
                "The circuit of subscription %s (%s) was reset; it is active again.",
                subscription.name,
                subscription.pk,
            )
        signal.send_robust(sender=Subscription, subscription=subscription)


def _one_line(error: str) -> str:
    return " ".join(error.split())[:200]
