"""The sweep: what makes a lost message cost seconds and nothing else.

Run by beat every few seconds. Two sweeps at once do no harm: a wake-up too many finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db import connection, transaction

from deliveries.holding import BATCH, SUBSCRIPTION_DELETED, discard, hold, release
from deliveries.wakeups import wake

# Every subscription with pending rows, by a loose scan of the index `delivery_due`: one look-up
# a subscription, however many rows it has. For each the first due time; then what is known of
# its lane. Lanes that somebody serves, or that rest, are left alone; an expired lease is nobody's.
_DUE = """
WITH RECURSIVE first AS (
    (
        SELECT subscription_id, next_attempt_at FROM deliveries_delivery
        WHERE status = 'pending' ORDER BY subscription_id, next_attempt_at LIMIT 1
    )
    UNION ALL
    SELECT following.* FROM first CROSS JOIN LATERAL (
        SELECT subscription_id, next_attempt_at FROM deliveries_delivery
        WHERE status = 'pending' AND subscription_id > first.subscription_id
        ORDER BY subscription_id, next_attempt_at LIMIT 1
    ) following
)
SELECT first.subscription_id, s.id IS NULL, coalesce(s.enabled, false),
    coalesce(lane.failures > 0, false)
FROM first
LEFT JOIN subscriptions_subscription s ON s.id = first.subscription_id
LEFT JOIN deliveries_lane lane ON lane.subscription_id = first.subscription_id
WHERE NOT coalesce(s.enabled, false) OR (
    first.next_attempt_at <= now()
    AND (lane.lease_until IS NULL OR lane.lease_until < now())
    AND (lane.resume_at IS NULL OR lane.resume_at <= now())
)
"""

# Subscriptions with held rows though they are active, or deleted: an event whose transaction was
# still open when the circuit was reset, or what was left of a large backlog. A loose scan again.
_HELD_AMISS = """
WITH RECURSIVE first AS (
    (
        SELECT subscription_id FROM deliveries_delivery
        WHERE status = 'held' ORDER BY subscription_id LIMIT 1
    )
    UNION ALL
    SELECT following.* FROM first CROSS JOIN LATERAL (
        SELECT subscription_id FROM deliveries_delivery
        WHERE status = 'held' AND subscription_id > first.subscription_id
        ORDER BY subscription_id LIMIT 1
    ) following
)
SELECT first.subscription_id, s.id IS NULL FROM first
LEFT JOIN subscriptions_subscription s ON s.id = first.subscription_id
WHERE coalesce(s.enabled, true)
"""

_PROBES_DUE = """
SELECT s.id FROM subscriptions_subscription s
LEFT JOIN deliveries_lane lane ON lane.subscription_id = s.id
WHERE s.next_probe_at <= now() AND NOT s.enabled AND s.recovery = 'automatic'
    AND (lane.lease_until IS NULL OR lane.lease_until < now())
    AND (lane.resume_at IS NULL OR lane.resume_at <= now())
    AND EXISTS (
        SELECT 1 FROM deliveries_delivery d WHERE d.subscription_id = s.id AND d.status = 'held'
    )
"""


@dataclass(frozen=True, slots=True)
class Swept:
    """How many subscriptions a sweep found, of each kind."""

    due: int
    failing: int
    probes: int
    stopped: int
    deleted: int
    released: int = 0


def sweep() -> Swept:
    """Wake what is due; returns what was found.

    Deliveries follow their subscription's state here too: an event whose transaction was open
    while the state changed saw the state before, and large backlogs follow in batches. What is
    pending on a stopped subscription is held, what is held on an active one released, and what
    belongs to a deleted one discarded.
    """
    released = _mend_held()
    healthy: list[UUID] = []
    failing: list[UUID] = []
    stopped: list[UUID] = []
    deleted: list[UUID] = []
    with connection.cursor() as cursor:
        cursor.execute(_DUE)
        for subscription_id, is_deleted, enabled, is_failing in cursor.fetchall():
            if is_deleted:
                deleted.append(subscription_id)
            elif not enabled:
                stopped.append(subscription_id)
            else:
                (failing if is_failing else healthy).append(subscription_id)
        cursor.execute(_PROBES_DUE)
        probes = [row[0] for row in cursor.fetchall()]
    for subscription_id in stopped:
        _follow(subscription_id, enabled=False)
    if deleted:
        discard(deleted, SUBSCRIPTION_DELETED, pending_too=True)
    wake(healthy, one_by_one=False)
    wake([*failing, *probes], recovering=True, one_by_one=False)
    return Swept(len(healthy), len(failing), len(probes), len(stopped), len(deleted), len(released))


def _mend_held() -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(_HELD_AMISS)
        rows = cursor.fetchall()
    if deleted := [row[0] for row in rows if row[1]]:
        discard(deleted, SUBSCRIPTION_DELETED)
    released = [row[0] for row in rows if not row[1]]
    for subscription_id in released:
        _follow(subscription_id, enabled=True)
    return released


def _follow(subscription_id: UUID, *, enabled: bool) -> None:
    """Hold or release all of a subscription's deliveries, in batches, while it stays so."""
    moved = BATCH
    while moved == BATCH:
        with transaction.atomic(), connection.cursor() as cursor:
            # Looked at again under the lock: its state may have changed since.
            cursor.execute(
                "SELECT 1 FROM subscriptions_subscription WHERE id = %s AND enabled = %s "
                "FOR NO KEY UPDATE",
                [subscription_id, enabled],
            )
            if cursor.fetchone() is None:
                return
            moved = (release if enabled else hold)([subscription_id])
