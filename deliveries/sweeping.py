"""The sweep: what makes a lost message cost seconds and nothing else.

Run by beat every few seconds. Two sweeps at once do no harm: a wake-up too many finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from django.db import connection, transaction

from deliveries.holding import SUBSCRIPTION_DELETED, discard, hold
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

_PROBES_DUE = """
SELECT s.id FROM subscriptions_subscription s
LEFT JOIN deliveries_lane lane ON lane.subscription_id = s.id
WHERE s.next_probe_at <= now() AND NOT s.enabled
    AND (lane.lease_until IS NULL OR lane.lease_until < now())
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


def sweep() -> Swept:
    """Wake what is due; returns what was found.

    Deliveries that slipped in while their subscription was being paused or tripped are held,
    those of a deleted one discarded: an event published in that very moment saw it still there.
    """
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
    if stopped:
        _hold_if_stopped(stopped)
    if deleted:
        discard(deleted, SUBSCRIPTION_DELETED, pending_too=True)
    wake(healthy, one_by_one=False)
    wake([*failing, *probes], recovering=True, one_by_one=False)
    return Swept(len(healthy), len(failing), len(probes), len(stopped), len(deleted))


def _hold_if_stopped(subscription_ids: list[UUID]) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        # Looked at again under the lock: one that was enabled meanwhile keeps its deliveries.
        cursor.execute(
            """
            SELECT id FROM subscriptions_subscription
            WHERE id = ANY(%s::uuid[]) AND NOT enabled ORDER BY id FOR NO KEY UPDATE
            """,
            [subscription_ids],
        )
        hold([row[0] for row in cursor.fetchall()])
