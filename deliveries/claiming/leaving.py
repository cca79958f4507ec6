"""Letting lanes go of which a claim sends nothing."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

# Those that somebody has locked are not waited for.
_FREED = """
WITH mine AS MATERIALIZED (
    SELECT subscription_id FROM deliveries_lane
    WHERE subscription_id = ANY(%(ids)s::uuid[]) AND lease_token = %(token)s::uuid
    ORDER BY subscription_id FOR UPDATE SKIP LOCKED
), freed AS (
    UPDATE deliveries_lane lane SET lease_token = NULL, lease_until = NULL
    FROM mine WHERE lane.subscription_id = mine.subscription_id
    RETURNING lane.subscription_id, lane.wake_again
)"""

_LEAVE = f"""{_FREED}
SELECT ARRAY(SELECT subscription_id FROM freed WHERE wake_again), ARRAY(
    SELECT subscription_id FROM deliveries_lane
    WHERE subscription_id = ANY(%(ids)s::uuid[]) AND lease_token = %(token)s::uuid
        AND subscription_id NOT IN (SELECT subscription_id FROM freed)
)
"""

_GIVE_BACK = f"""{_FREED}
UPDATE deliveries_delivery SET lease_until = NULL
WHERE id = ANY(ARRAY(
    SELECT d.id FROM freed CROSS JOIN LATERAL (
        SELECT id FROM deliveries_delivery
        WHERE id = ANY(%(deliveries)s::bigint[]) AND subscription_id = freed.subscription_id
        FOR UPDATE SKIP LOCKED
    ) d
))
"""


def leave(
    cursor: Any, subscription_ids: Sequence[uuid.UUID], token: uuid.UUID
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """Let lanes go that the claim of this token holds, and on which it found nothing.

    Returns those for which a wake-up came meanwhile, and those that somebody has locked, to mark
    a wake-up for example: they are not waited for.
    """
    cursor.execute(_LEAVE, {"ids": list(subscription_ids), "token": token})
    again, held = cursor.fetchone()
    return again, held


def give_back(
    cursor: Any,
    subscription_ids: Sequence[uuid.UUID],
    delivery_ids: Sequence[int],
    token: uuid.UUID,
) -> None:
    """Undo a claim that failed, and of which nothing was sent; what is locked waits for the
    lease to end."""
    cursor.execute(
        _GIVE_BACK,
        {"ids": list(subscription_ids), "deliveries": list(delivery_ids), "token": token},
    )
