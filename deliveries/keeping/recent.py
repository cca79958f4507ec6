"""How the newest deliveries of a subscription went, for people to see."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import connection

SAMPLE = 1000


class Recent(NamedTuple):
    """Numbers of deliveries by status, and of attempts; `since`: when the oldest was published.

    `duration_ms_p50` and `duration_ms_p99` are about the attempts that were answered.
    """

    since: datetime | None
    pending: int
    held: int
    succeeded: int
    failed: int
    discarded: int
    attempts: int
    duration_ms_p50: int | None
    duration_ms_p99: int | None


# By the index `delivery_history`, which asks for `id > 0`, and the attempts by their own: however
# long the history is, no more than the sample is read.
_RECENT = """
WITH newest AS MATERIALIZED (
    SELECT id, status, created_at FROM deliveries_delivery
    WHERE subscription_id = %(id)s AND id > 0 ORDER BY id DESC LIMIT %(sample)s
), made AS (
    SELECT a.duration_ms, a.status_code FROM newest
    CROSS JOIN LATERAL (
        SELECT duration_ms, status_code FROM deliveries_attempt
        WHERE delivery_id = newest.id OFFSET 0
    ) a
), attempts AS (
    SELECT count(*) AS made,
        percentile_disc(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY duration_ms)
            FILTER (WHERE status_code IS NOT NULL) AS ms
    FROM made
), counted AS (
    SELECT min(created_at) AS since,
        count(*) FILTER (WHERE status = 'pending') AS pending,
        count(*) FILTER (WHERE status = 'held') AS held,
        count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE status = 'failed') AS failed,
        count(*) FILTER (WHERE status = 'discarded') AS discarded
    FROM newest
)
SELECT since, pending, held, succeeded, failed, discarded, made, ms[1], ms[2]
FROM counted, attempts
"""


def recent(subscription_id: UUID) -> Recent:
    """The newest 1,000 deliveries of a subscription, or all if there are fewer, in one query."""
    with connection.cursor() as cursor:
        cursor.execute(_RECENT, {"id": subscription_id, "sample": SAMPLE})
        return Recent(*cursor.fetchone())
