"""Replay: finished deliveries are sent again, with the `webhook-id` that they had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from itertools import islice
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction

from deliveries.models import Delivery
from deliveries.waking.wakeups import wake
from subscriptions.models import Subscription

BATCH = 1000
FINISHED = (Delivery.Status.SUCCEEDED, Delivery.Status.FAILED, Delivery.Status.DISCARDED)


class Replayed(NamedTuple):
    """Numbers of deliveries: due at once, and held until their subscription is active again."""

    pending: int = 0
    held: int = 0


# The subscriptions are locked first, as everywhere, so that none trips or is paused between the
# look at its state and the change. What is open already is left alone: a second replay of the
# same delivery changes nothing.
_REPLAY = """
WITH state AS MATERIALIZED (
    SELECT s.id, s.enabled FROM subscriptions_subscription s
    WHERE s.id IN (
        SELECT subscription_id FROM deliveries_delivery WHERE id = ANY(%(ids)s::bigint[])
    )
    ORDER BY s.id FOR SHARE
), again AS MATERIALIZED (
    SELECT d.id, state.enabled FROM deliveries_delivery d
    JOIN state ON state.id = d.subscription_id
    WHERE d.id = ANY(%(ids)s::bigint[]) AND d.status = ANY(%(finished)s)
    ORDER BY d.id FOR UPDATE OF d
)
UPDATE deliveries_delivery d SET
    status = CASE WHEN again.enabled THEN 'pending' ELSE 'held' END,
    next_attempt_at = CASE WHEN again.enabled THEN now() END,
    held_at = CASE WHEN again.enabled THEN d.held_at ELSE now() END,
    retries_used = 0, lease_until = NULL, finished_at = NULL, last_error = ''
FROM again WHERE d.id = again.id AND d.status = ANY(%(finished)s)
RETURNING d.id, d.subscription_id, again.enabled
"""


def replay(delivery_ids: Sequence[int]) -> tuple[Replayed, set[int]]:
    """Send finished deliveries again; returns the numbers, and the ids of what was changed.

    Retries begin anew, attempts go on counting. Deliveries of a tripped or paused subscription
    are held, and go out when it is active again. Left alone: what is pending or held already, and
    what belongs to a deleted subscription.

    One transaction; workers are woken after it.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            _REPLAY,
            {"ids": list(delivery_ids), "finished": list(FINISHED)},
        )
        rows = cursor.fetchall()
        woken: list[UUID] = list(dict.fromkeys(row[1] for row in rows if row[2]))
        if woken:
            transaction.on_commit(partial(wake, woken))
    pending = sum(1 for row in rows if row[2])
    return Replayed(pending, len(rows) - pending), {row[0] for row in rows}


def replay_many(delivery_ids: Iterable[int]) -> tuple[Replayed, set[int]]:
    """`replay` in batches, each a transaction of its own: for any number of deliveries."""
    total, changed = Replayed(), set[int]()
    for batch in _batches(delivery_ids):
        replayed, ids = replay(batch)
        total = Replayed(total.pending + replayed.pending, total.held + replayed.held)
        changed |= ids
    return total, changed


def finished_deliveries(
    subscription: Subscription,
    *,
    statuses: Iterable[str],
    since: datetime | None = None,
    until: datetime | None = None,
) -> list[int]:
    """The ids of a subscription's finished deliveries, oldest first.

    `since` (included) and `until` (not included) are about the time the event was published.
    """
    chosen = Delivery.objects.filter(
        subscription=subscription, status__in=[one for one in statuses if one in FINISHED]
    )
    if since is not None:
        chosen = chosen.filter(created_at__gte=since)
    if until is not None:
        chosen = chosen.filter(created_at__lt=until)
    return list(chosen.order_by("id").values_list("id", flat=True))


def why_not(delivery_ids: Iterable[int]) -> dict[int, str]:
    """For deliveries that `replay` left alone: why, in words for operators."""
    ids = list(delivery_ids)
    found = {one.pk: one for one in Delivery.objects.filter(pk__in=ids)}
    existing = set(
        Subscription.objects.filter(
            pk__in={one.subscription_id for one in found.values()}
        ).values_list("pk", flat=True)
    )
    reasons = {}
    for delivery_id in ids:
        delivery = found.get(delivery_id)
        if delivery is None:
            reasons[delivery_id] = "there is no such delivery"
        elif delivery.status not in FINISHED:
            reasons[delivery_id] = f"it is {delivery.status} already"
        elif delivery.subscription_id not in existing:
            reasons[delivery_id] = "its subscription was deleted"
        else:
            reasons[delivery_id] = "it was changed in that very moment; try again"
    return reasons


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    iterator = iter(ids)
    while batch := list(islice(iterator, BATCH)):
        yield batch
