"""How much of each subscription is waiting, for people to see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from uuid import UUID

from django.db import connection


class Backlog(NamedTuple):
    """Numbers of deliveries."""

    pending: int = 0
    held: int = 0


# Two scans, because each of the two partial indexes answers for one status, and nothing else
# is read. Finished rows, which are nearly all, cost nothing.
_COUNT = """
SELECT subscription_id, sum(pending)::bigint, sum(held)::bigint FROM (
    SELECT subscription_id, count(*) AS pending, 0 AS held FROM deliveries_delivery
    WHERE status = 'pending' AND {chosen} GROUP BY subscription_id
    UNION ALL
    SELECT subscription_id, 0, count(*) FROM deliveries_delivery
    WHERE status = 'held' AND {chosen} GROUP BY subscription_id
) counted
GROUP BY subscription_id
"""


def backlogs(subscription_ids: Iterable[UUID] | None = None) -> dict[UUID, Backlog]:
    """The backlogs of these subscriptions (default: of all), in one query.

    Who has none is left out.
    """
    with connection.cursor() as cursor:
        if subscription_ids is None:
            cursor.execute(_COUNT.format(chosen="true"))
        else:
            ids = list(subscription_ids)
            cursor.execute(_COUNT.format(chosen="subscription_id = ANY(%s::uuid[])"), [ids, ids])
        return {row[0]: Backlog(row[1], row[2]) for row in cursor.fetchall()}
