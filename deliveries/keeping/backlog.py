"""What of each subscription is waiting, and why, for people to see."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from django.db import connection
from django.utils import timezone

from deliveries.models import Delivery, Lane
from subscriptions.models import TripFuse


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


# The same, but of none of them more than so many: a page waits for it.
_COUNT_SOME = """
SELECT s.id, pending.number, held.number FROM unnest(%(ids)s::uuid[]) AS s (id)
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM deliveries_delivery d
        WHERE d.subscription_id = s.id AND d.status = 'pending' LIMIT %(at_most)s
    ) few
) pending
CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT FROM deliveries_delivery d
        WHERE d.subscription_id = s.id AND d.status = 'held' LIMIT %(at_most)s
    ) few
) held
WHERE pending.number + held.number > 0
"""


def backlogs_up_to(at_most: int, subscription_ids: Iterable[UUID]) -> dict[UUID, Backlog]:
    """As `backlogs`, but no number is larger than `at_most`, which stands for as many or more."""
    with connection.cursor() as cursor:
        cursor.execute(_COUNT_SOME, {"ids": list(subscription_ids), "at_most": at_most})
        return {row[0]: Backlog(row[1], row[2]) for row in cursor.fetchall()}


def backlogs(subscription_ids: Iterable[UUID] | None = None) -> dict[UUID, Backlog]:
    """The backlogs of these subscriptions (default: of all), in one query.

    Subscriptions without one are left out. A million rows take 0.2 s.
    """
    with connection.cursor() as cursor:
        if subscription_ids is None:
            cursor.execute(_COUNT.format(chosen="true"))
        else:
            ids = list(subscription_ids)
            cursor.execute(_COUNT.format(chosen="subscription_id = ANY(%s::uuid[])"), [ids, ids])
        return {row[0]: Backlog(row[1], row[2]) for row in cursor.fetchall()}


class Backoff(NamedTuple):
    """Nothing is sent to a subscription `until` then, `because` of this."""

    until: datetime
    because: str

    def __str__(self) -> str:
        until = timezone.localtime(self.until)
        return f"backing off until {until:%Y-%m-%d %H:%M:%S %Z}, because {self.because}"


def backoff(lane: Lane | None, last_error: str) -> Backoff | None:
    """Until when the subscription of `lane` backs off, and why; None if it does not.

    `last_error`: the subscription's, for a backoff whose reason is not known. No lane: nothing
    was ever sent.
    """
    if lane is None or lane.resume_at is None or lane.resume_at <= timezone.now():
        return None
    because = lane.backoff_reason or last_error or "the last attempt failed"
    if lane.failures > 1:
        because += f" ({lane.failures} failed attempts in a row)"
    return Backoff(lane.resume_at, because)


def being_discarded(lane: Lane | None) -> int:
    """How many held deliveries an operator's discard, which is under way, has yet to end."""
    if lane is None or lane.discard_before is None:
        return 0
    return Delivery.objects.filter(
        subscription_id=lane.pk, status=Delivery.Status.HELD, held_at__lte=lane.discard_before
    ).count()


def is_sending(lane: Lane | None) -> bool:
    """Whether a worker holds the lane's lease just now."""
    return lane is not None and lane.lease_until is not None and lane.lease_until > timezone.now()


def fuse_blown_at() -> datetime | None:
    """Since when the fuse is blown (`subscriptions.circuit.fuse`); None if circuits may trip."""
    return TripFuse.objects.filter(pk=1).values_list("blown_at", flat=True).first()
