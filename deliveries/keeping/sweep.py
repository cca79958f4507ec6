"""The sweep: what makes a lost message cost seconds and nothing else.

Run by beat every few seconds. Two sweeps at once do no harm: a wake-up too many finds nothing.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from django.db import connection, transaction

from deliveries.holding import (
    BATCH,
    SUBSCRIPTION_DELETED,
    discard,
    go_on_discarding,
    hold,
    release,
)
from deliveries.waking.wakeups import wake
from subscriptions.circuit import fuse
from subscriptions.conf import conf

# Every subscription with pending rows, by a loose scan of the index `delivery_due`: one look-up
# a subscription, however many rows it has. For each the first due time; then what is known of
# its lane. Lanes that are leased, or back off, are left alone; an expired lease counts for nothing.
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
# still open when the circuit was reset, or what was left of a large backlog; and those of which
# an operator's discard is under way. A loose scan again.
_HELD_WRONGLY = """
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
SELECT first.subscription_id, s.id IS NULL, lane.discard_before FROM first
LEFT JOIN subscriptions_subscription s ON s.id = first.subscription_id
LEFT JOIN deliveries_lane lane ON lane.subscription_id = first.subscription_id
WHERE coalesce(s.enabled, true) OR lane.discard_before IS NOT NULL
"""

_PROBES_DUE = """
SELECT s.id FROM subscriptions_subscription s
LEFT JOIN deliveries_lane lane ON lane.subscription_id = s.id
WHERE s.next_probe_at <= now() AND NOT s.enabled AND s.recovery = 'automatic'
    AND (lane.lease_until IS NULL OR lane.lease_until < now())
    AND (lane.resume_at IS NULL OR lane.resume_at <= now())
    AND lane.discard_before IS NULL
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
    pending on a stopped subscription is held, what is held on an active one released (or, if an
    operator said so, discarded), and what belongs to a deleted one discarded. What is due is
    woken first; the backlogs then take turns, a batch each, until the next sweep is due, which
    goes on with them.
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
        cursor.execute(_HELD_WRONGLY)
        held_wrongly = cursor.fetchall()
    wake(healthy, keep_place=True)
    wake([*failing, *probes], recovering=True, keep_place=True)
    fuse.reset_outlived()
    released: list[UUID] = []
    discarding: list[tuple[UUID, datetime]] = []
    for subscription_id, is_deleted, discard_before in held_wrongly:
        if is_deleted:
            if subscription_id not in deleted:
                deleted.append(subscription_id)
        elif discard_before is None:
            released.append(subscription_id)
        else:
            discarding.append((subscription_id, discard_before))
    _take_turns(
        [
            *(partial(_follow, subscription_id, enabled=False) for subscription_id in stopped),
            *(partial(_follow, subscription_id, enabled=True) for subscription_id in released),
            *(partial(go_on_discarding, *what) for what in discarding),
            *(
                partial(
                    discard, [subscription_id], SUBSCRIPTION_DELETED, pending_too=True, limit=BATCH
                )
                for subscription_id in deleted
            ),
        ],
        until=time.monotonic() + conf().sweep_interval,
    )
    return Swept(len(healthy), len(failing), len(probes), len(stopped), len(deleted), len(released))


def _take_turns(moves: list[Callable[[], int]], until: float) -> None:
    """Call each move again for as long as it moves a whole batch, and it is not `until` yet.

    In an order that differs from sweep to sweep: each gets its turn in the end.
    """
    random.shuffle(moves)
    waiting = deque(moves)
    while waiting and time.monotonic() < until:
        move = waiting.popleft()
        if move() >= BATCH:
            waiting.append(move)


def _follow(subscription_id: UUID, *, enabled: bool) -> int:
    """Hold or release a batch of a subscription's deliveries, if it still is in that state.

    Returns how many were moved. What is released is woken after the commit.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        # Looked at again under the lock: its state may have changed since.
        cursor.execute(
            "SELECT 1 FROM subscriptions_subscription WHERE id = %s AND enabled = %s "
            "FOR NO KEY UPDATE",
            [subscription_id, enabled],
        )
        if cursor.fetchone() is None:
            return 0
        moved = (release if enabled else hold)([subscription_id])
        if enabled and moved:
            transaction.on_commit(partial(wake, [subscription_id]))
    return moved
