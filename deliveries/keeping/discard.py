"""Discard: single deliveries that have not ended are ended, and are not sent."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connection, transaction

from deliveries.holding import DISCARDED_BY_OPERATOR
from subscriptions import audit

# Deliveries are locked in the order of their ids, as by a replay. Nothing else is locked: what a
# release or a settlement finds discarded it leaves so.
_DISCARD = """
UPDATE deliveries_delivery
SET status = 'discarded', next_attempt_at = NULL, finished_at = now(), last_error = %(reason)s
WHERE status IN ('pending', 'held') AND id = ANY(ARRAY(
    SELECT id FROM deliveries_delivery
    WHERE id = ANY(%(ids)s::bigint[]) AND status IN ('pending', 'held')
    ORDER BY id FOR UPDATE
))
RETURNING id, subscription_id
"""


def discard(delivery_ids: Sequence[int]) -> set[int]:
    """End these deliveries as `discarded`; returns the ids of those that were pending or held.

    Others are left as they are. A request that is in flight may still succeed; then the delivery
    has succeeded. What was discarded can be replayed.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_DISCARD, {"ids": list(delivery_ids), "reason": DISCARDED_BY_OPERATOR})
        rows = cursor.fetchall()
        audit.record("discarded", audit.of_deliveries(rows))
    return {row[0] for row in rows}
