"""Deliveries follow their subscription's state: held when it stops, released when it starts.

Everything here runs in the transaction that changes the subscription, after its row is locked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from django.db import connection, transaction
from django.db.models.signals import pre_delete
from django.dispatch import receiver

from deliveries.waking.wakeups import wake
from subscriptions.models import Subscription
from subscriptions.signals import (
    backoff_reset,
    subscriptions_enabled,
    subscriptions_repointed,
    subscriptions_stopped,
)

DISCARDED_BY_OPERATOR = "discarded by an operator"
SUBSCRIPTION_DELETED = "its subscription was deleted"
HELD_TOO_LONG = "held for longer than is kept (WEBHOOKS_HOLD_DAYS)"


# What is held or released in the transaction of the change itself. A larger backlog follows in
# batches, by the sweep: no caller waits for a million rows, and none is sent meanwhile that should
# not be, because a claim reads the subscription's state. (`ANY(ARRAY(…))` and not `IN (…)`: the
# planner may run a sub-select that is joined once for each row, and lock more than its limit.)
# SKIP LOCKED: what a settlement writes just now is not waited for; the sweep finds it.
BATCH = 1000
# Of each subscription that is deleted: an operator may delete a hundred in one transaction.
BATCH_OF_DELETED = 100


# Each subscription is looked up by itself, in the order of the index of its open rows
# (`delivery_due`, `delivery_held`): whatever the planner believes of the tables, it finds no
# reason to read a history for them.
_PENDING = """
    SELECT found.id FROM unnest(%(ids)s::uuid[]) AS s (id) CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries_delivery d
        WHERE d.subscription_id = s.id AND d.status = 'pending'
        ORDER BY d.next_attempt_at, d.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) found
    LIMIT %(limit)s
"""
_HELD = """
    SELECT found.id FROM unnest(%(ids)s::uuid[]) AS s (id) CROSS JOIN LATERAL (
        SELECT d.id FROM deliveries_delivery d
        WHERE d.subscription_id = s.id AND d.status = 'held'
        ORDER BY d.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) found
    LIMIT %(limit)s
"""


def hold(subscription_ids: Sequence[UUID], limit: int = BATCH) -> int:
    """Hold what is pending, at most `limit` rows, the first due first; returns how many.

    A request that is in flight may still succeed afterwards.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE deliveries_delivery
            SET status = 'held', next_attempt_at = NULL, held_at = clock_timestamp()
            WHERE status = 'pending' AND id = ANY(ARRAY({_PENDING}))
            """,
            {"ids": list(subscription_ids), "limit": limit},
        )
        return int(cursor.rowcount)


def release(subscription_ids: Sequence[UUID], limit: int = BATCH) -> int:
    """Make what is held due, at most `limit` rows, the oldest first; returns how many.

    Their retries start again at none. Subscriptions of which an operator's discard is under way
    are left as they are: what was held since is released after it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT subscription_id FROM deliveries_lane
            WHERE subscription_id = ANY(%s::uuid[]) AND discard_before IS NOT NULL
            """,
            [list(subscription_ids)],
        )
        discarding = {row[0] for row in cursor.fetchall()}
        ids = [key for key in subscription_ids if key not in discarding]
        cursor.execute(
            f"""
            UPDATE deliveries_delivery
            SET status = 'pending', next_attempt_at = now(), retries_used = 0
            WHERE status = 'held' AND id = ANY(ARRAY({_HELD}))
            """,
            {"ids": ids, "limit": limit},
        )
        return int(cursor.rowcount)


def discard(
    subscription_ids: Sequence[UUID], reason: str, *, pending_too: bool = False, limit: int
) -> int:
    """End what is held (and pending) as `discarded`, with the reason to be seen.

    At most `limit` rows; returns how many.
    """
    discarded = 0
    with connection.cursor() as cursor:
        for status, rows in (("held", _HELD), ("pending", _PENDING)):
            if status == "held" or pending_too:
                cursor.execute(
                    f"""
                    UPDATE deliveries_delivery
                    SET status = 'discarded', next_attempt_at = NULL, finished_at = now(),
                        last_error = %(reason)s
                    WHERE status = %(status)s AND id = ANY(ARRAY({rows}))
                    """,
                    {
                        "ids": list(subscription_ids),
                        "reason": reason,
                        "status": status,
                        "limit": limit - discarded,
                    },
                )
                discarded += int(cursor.rowcount)
    return discarded


def discard_from_now_on(subscription_ids: Sequence[UUID]) -> None:
    """Discard what is held now: a batch at once, the rest by the sweep (`go_on_discarding`).

    In the transaction that enables the subscriptions, after `start_gently`.
    """
    ids = list(subscription_ids)
    discard(ids, DISCARDED_BY_OPERATOR, limit=BATCH)
    with connection.cursor() as cursor:
        # The time at which the subscriptions are locked: what is held later has a later one.
        cursor.execute(
            """
            UPDATE deliveries_lane SET discard_before = clock_timestamp()
            WHERE subscription_id = ANY(%s::uuid[]) AND (
                SELECT true FROM deliveries_delivery d
                WHERE d.subscription_id = deliveries_lane.subscription_id AND d.status = 'held'
                ORDER BY d.id LIMIT 1  -- by the index `delivery_held`
            )
            """,
            [ids],
        )


def go_on_discarding(subscription_id: UUID, before: datetime) -> int:
    """Discard a batch of what was held until `before`; returns how many. The mark goes last.

    Two transactions: a lane is never locked after a delivery.
    """
    parameters: dict[str, Any] = {
        "id": subscription_id, "before": before, "limit": BATCH, "reason": DISCARDED_BY_OPERATOR,
    }  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE deliveries_delivery
            SET status = 'discarded', finished_at = now(), last_error = %(reason)s
            WHERE status = 'held' AND id = ANY(ARRAY(
                SELECT id FROM deliveries_delivery
                WHERE subscription_id = %(id)s AND status = 'held' AND held_at <= %(before)s
                ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
            ))
            """,
            parameters,
        )
        discarded = int(cursor.rowcount)
        if discarded < BATCH:
            cursor.execute(
                """
                UPDATE deliveries_lane SET discard_before = NULL
                WHERE subscription_id = %(id)s AND discard_before = %(before)s AND (
                    SELECT true FROM deliveries_delivery
                    WHERE subscription_id = %(id)s AND status = 'held' AND held_at <= %(before)s
                    ORDER BY id LIMIT 1
                ) IS NULL
                """,
                parameters,
            )
    return discarded


def start_gently(subscription_ids: Sequence[UUID]) -> None:
    """One request in flight at first, and no backoff left over from before."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            INSERT INTO deliveries_lane (
                subscription_id, wake_again, "window", failures, backoff_reason
            )
            SELECT id, false, 1, 0, '' FROM unnest(%s::uuid[]) AS id ORDER BY id
            ON CONFLICT (subscription_id) DO UPDATE
            SET "window" = 1, failures = 0, resume_at = NULL, backoff_reason = '',
                retrying_id = NULL
            """,
            [list(subscription_ids)],
        )


@receiver(subscriptions_stopped)
def _hold_on_stop(*, subscription_ids: list[UUID], **_: Any) -> None:
    hold(subscription_ids)


@receiver(subscriptions_enabled)
def _release_on_enable(*, subscription_ids: list[UUID], discard_held: bool, **_: Any) -> None:
    start_gently(subscription_ids)
    if discard_held:
        discard_from_now_on(subscription_ids)
    elif release(subscription_ids):
        transaction.on_commit(partial(wake, subscription_ids))


@receiver(backoff_reset)
def _end_backoff(*, subscription_ids: list[UUID], **_: Any) -> list[UUID]:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT subscription_id FROM deliveries_lane
            WHERE subscription_id = ANY(%s::uuid[]) AND (failures > 0 OR resume_at > now())
            ORDER BY subscription_id FOR UPDATE
            """,
            [subscription_ids],
        )
        backing_off = [row[0] for row in cursor.fetchall()]
    if backing_off:
        start_gently(backing_off)
        transaction.on_commit(partial(wake, backing_off))
    return backing_off


@receiver(subscriptions_repointed)
def _start_over(*, subscription_ids: list[UUID], **_: Any) -> None:
    start_gently(subscription_ids)
    transaction.on_commit(partial(wake, subscription_ids))


@receiver(pre_delete, sender=Subscription)
def _discard_on_delete(instance: Subscription, **_: Any) -> None:
    with connection.cursor() as cursor:
        # Subscription, lane, deliveries: the order of locks, as everywhere.
        cursor.execute(
            "SELECT 1 FROM subscriptions_subscription WHERE id = %s FOR UPDATE", [instance.pk]
        )
        cursor.execute("DELETE FROM deliveries_lane WHERE subscription_id = %s", [instance.pk])
        # The sweep discards what is left of a larger backlog; no claim is made for what is deleted.
        discard([instance.pk], SUBSCRIPTION_DELETED, pending_too=True, limit=BATCH_OF_DELETED)
