"""Housekeeping: what is held for too long ends, and what is kept long enough goes.

In batches, each a transaction of its own, with SKIP LOCKED: it never blocks a delivery, may run
twice at once, and may be killed anywhere.
"""

from __future__ import annotations

from typing import Any

from django.db import connection

from deliveries.keeping.holding import HELD_TOO_LONG
from subscriptions.conf import conf
from subscriptions.index import trim_changes

BATCH = 2000
KEPT_CHANGES = 10_000


def expire_held() -> int:
    """Discard deliveries held for longer than `hold_days`; returns how many."""
    return _repeat(
        """
        UPDATE deliveries_delivery SET status = 'discarded', finished_at = now(),
            last_error = %(reason)s
        WHERE id = ANY(ARRAY(
            SELECT id FROM deliveries_delivery
            WHERE status = 'held' AND held_at < now() - %(days)s * interval '1 day'
            LIMIT %(batch)s FOR UPDATE SKIP LOCKED
        ))
        """,
        reason=HELD_TOO_LONG,
        days=conf().hold_days,
    )


def prune() -> tuple[int, int]:
    """Remove finished deliveries past their time, and events that have none left.

    Returns the numbers of deliveries and of events removed.
    """
    values = conf()
    deliveries = 0
    for statuses, days in (
        (["succeeded"], values.keep_succeeded_days),
        (["failed", "discarded"], values.keep_failed_days),
    ):
        deliveries += _repeat(
            """
            WITH old AS (
                SELECT id FROM deliveries_delivery
                WHERE finished_at < now() - %(days)s * interval '1 day'
                    AND status = ANY(%(statuses)s)
                ORDER BY finished_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
            ), attempts AS (
                DELETE FROM deliveries_attempt WHERE delivery_id IN (SELECT id FROM old)
            )
            DELETE FROM deliveries_delivery WHERE id IN (SELECT id FROM old)
            """,
            days=days,
            statuses=statuses,
        )
    events = _repeat(
        """
        DELETE FROM deliveries_event WHERE id = ANY(ARRAY(
            SELECT e.id FROM deliveries_event e
            WHERE e.created_at < now() - %(days)s * interval '1 day'
                AND NOT EXISTS (SELECT 1 FROM deliveries_delivery d WHERE d.event_id = e.id)
            ORDER BY e.created_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED
        ))
        """,
        days=min(values.keep_succeeded_days, values.keep_failed_days),
    )
    _repeat(
        """
        DELETE FROM deliveries_lane WHERE subscription_id = ANY(ARRAY(
            SELECT lane.subscription_id FROM deliveries_lane lane
            WHERE NOT EXISTS (
                SELECT 1 FROM subscriptions_subscription s WHERE s.id = lane.subscription_id
            )
            LIMIT %(batch)s FOR UPDATE SKIP LOCKED
        ))
        """
    )
    trim_changes(KEPT_CHANGES)
    return deliveries, events


def _repeat(sql: str, **parameters: Any) -> int:
    total = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(sql, {**parameters, "batch": BATCH})
            count = int(cursor.rowcount)
        total += count
        if count < BATCH:
            return total
