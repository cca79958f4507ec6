"""Replay: finished deliveries are sent again, with the `webhook-id` that they had."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Max, QuerySet

from deliveries.keeping.moments import within
from deliveries.models import Delivery, Event
from deliveries.waking.wakeups import wake
from subscriptions import audit
from subscriptions.models import Subscription

BATCH = 1000
FINISHED = (Delivery.Status.SUCCEEDED, Delivery.Status.FAILED, Delivery.Status.DISCARDED)


class Replayed(NamedTuple):
    """Numbers of deliveries: due at once, and held until their subscription is active again."""

    pending: int = 0
    held: int = 0


# The subscriptions are locked first, as everywhere, so that none trips or is paused between the
# look at its state and the change. What is open already is left alone: a second replay of the
# same delivery changes nothing. So is what publishing would not send to the subscription any more,
# because it was for all tenants then. (No EXISTS: PostgreSQL may plan it as a hash of all events.)
_REPLAY = """
WITH state AS MATERIALIZED (
    SELECT s.id, s.enabled, s.tenant, s.all_tenants FROM subscriptions_subscription s
    WHERE s.id IN (
        SELECT subscription_id FROM deliveries_delivery WHERE id = ANY(%(ids)s::bigint[])
    )
    ORDER BY s.id FOR SHARE
), again AS MATERIALIZED (
    SELECT d.id, state.enabled FROM deliveries_delivery d
    JOIN state ON state.id = d.subscription_id
    WHERE d.id = ANY(%(ids)s::bigint[]) AND d.status = ANY(%(finished)s)
        AND (state.all_tenants OR state.tenant = coalesce(
            (SELECT e.tenant FROM deliveries_event e WHERE e.id = d.event_id), state.tenant
        ))
    ORDER BY d.id FOR UPDATE OF d
)
UPDATE deliveries_delivery d SET
    status = CASE WHEN again.enabled THEN 'pending' ELSE 'held' END,
    next_attempt_at = CASE WHEN again.enabled THEN now() END,
    held_at = CASE WHEN again.enabled THEN d.held_at ELSE clock_timestamp() END,
    retries_used = 0, lease_until = NULL, finished_at = NULL, last_error = ''
FROM again WHERE d.id = again.id AND d.status = ANY(%(finished)s)
RETURNING d.id, d.subscription_id, again.enabled
"""


def replay(
    delivery_ids: Sequence[int], chosen_by: audit.Entry | None = None
) -> tuple[Replayed, set[int]]:
    """Send finished deliveries again; returns the numbers, and the ids of what was changed.

    Retries start again at none, attempts go on counting. Deliveries of a tripped or paused
    subscription are held, and go out when it is active again. Left as they are: those that are
    pending or held already, those of a deleted subscription, and those with another tenant's event,
    if their subscription is not for all tenants any more.

    `chosen_by`: what the audit says of a replay of which these are a part.

    One transaction; workers are woken after it.
    """
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            _REPLAY,
            {"ids": list(delivery_ids), "finished": list(FINISHED)},
        )
        rows = cursor.fetchall()
        if chosen_by is None:
            audit.record("resent", audit.of_deliveries((row[0], row[1]) for row in rows))
        elif rows:
            counted = {**chosen_by.detail, "count": len(rows)}
            audit.record("replayed", [replace(chosen_by, detail=counted)], adds_up=True)
        woken: list[UUID] = list(dict.fromkeys(row[1] for row in rows if row[2]))
        if woken:
            transaction.on_commit(partial(wake, woken))
    pending = sum(1 for row in rows if row[2])
    return Replayed(pending, len(rows) - pending), {row[0] for row in rows}


@dataclass(frozen=True, slots=True)
class Chosen:
    """A subscription's finished deliveries in these statuses.

    `since` (included) and `until` (not included) are about the time the event was published.
    `topic`: only those of events with this very topic. `by_id`: find these times among the ids
    first, however long the history is (with the exception that `within` names). `after`: deliveries
    up to this id are too old, as `moments.oldest` found for several of these.
    """

    subscription: Subscription
    statuses: Sequence[str]
    since: datetime | None = None
    until: datetime | None = None
    topic: str | None = None
    by_id: bool = False
    after: int = 0

    def rows(self) -> QuerySet[Delivery]:
        chosen = Delivery.objects.filter(
            subscription=self.subscription,
            status__in=set(self.statuses) & set(FINISHED),
            id__gt=0,  # true of all, and what the index `delivery_history` asks for
        )
        if self.after:
            chosen = chosen.filter(id__gt=self.after)
        if self.by_id:
            chosen = within(chosen, self.since, self.until)
        if self.since is not None:
            chosen = chosen.filter(created_at__gte=self.since)
        if self.until is not None:
            chosen = chosen.filter(created_at__lt=self.until)
        if self.topic is not None:
            chosen = chosen.filter(event__topic=self.topic)
        return chosen

    def audited(self, newest: int) -> audit.Entry:
        """The one entry of the audit for all batches of this replay, which began at `newest`."""
        detail = {
            "status": sorted(set(self.statuses)),
            "since": self.since and self.since.isoformat(),
            "until": self.until and self.until.isoformat(),
            "topic": self.topic,
        }
        choice = json.dumps([str(self.subscription.pk), newest, detail, *audit.who_acts()])
        return audit.Entry(
            self.subscription.pk, detail, f"replayed:{sha256(choice.encode()).hexdigest()}"
        )


class Position(NamedTuple):
    """How far a replay has come: `newest` is the last delivery there was when it began."""

    newest: int
    status: str
    last: int


def replay_some(
    chosen: Chosen, position: Position | None = None, batches: int = 1
) -> tuple[Replayed, Position | None]:
    """Replay the next of the chosen deliveries; returns the numbers, and where to go on.

    At most `batches` of 1,000 deliveries are looked at, each in a transaction of its own, oldest
    first in each status. None for the position: begin; in the answer: nothing is left.
    Deliveries that fail again, or are published, after the beginning are not taken.
    """
    if position is None:
        newest = Delivery.objects.aggregate(newest=Max("id"))["newest"] or 0
        position = Position(newest, "", 0)
    entry = chosen.audited(position.newest)
    total = Replayed()
    # A status at a time: the index is in the order of ids within each status.
    for status in sorted(set(chosen.statuses)):
        if status < position.status:
            continue
        last = position.last if status == position.status else 0
        rows = replace(chosen, statuses=[status], topic=None).rows()
        rows = rows.filter(id__lte=position.newest).order_by("id")
        full = True
        while full:
            if not batches:
                return total, Position(position.newest, status, last)
            batch = list(rows.filter(id__gt=last).values_list("id", "event_id")[:BATCH])
            full = len(batch) == BATCH
            if batch:
                replayed, _ = replay(_of_topic(batch, chosen.topic), entry)
                total = Replayed(total.pending + replayed.pending, total.held + replayed.held)
                last = batch[-1][0]
                batches -= 1
    return total, None


def _of_topic(batch: list[tuple[int, str]], topic: str | None) -> list[int]:
    """The ids of those deliveries whose events have this topic (None: any)."""
    if topic is None:
        return [delivery_id for delivery_id, _ in batch]
    events = Event.objects.filter(pk__in={event_id for _, event_id in batch}, topic=topic)
    found = set(events.values_list("pk", flat=True))
    return [delivery_id for delivery_id, event_id in batch if event_id in found]


def replay_chosen(chosen: Chosen) -> Iterator[Replayed]:
    """Replay any number of deliveries, as `replay_some` does; yields a total as it grows.

    The memory that it needs does not depend on how many there are. When it is interrupted, what
    was replayed stays so, and the same call goes on with the rest.
    """
    total, position = Replayed(), None
    while True:
        replayed, position = replay_some(chosen, position)
        total = Replayed(total.pending + replayed.pending, total.held + replayed.held)
        yield total
        if position is None:
            return


def why_not(delivery_ids: Iterable[int]) -> dict[int, str]:
    """For deliveries that `replay` left alone: why, in words for operators."""
    ids = list(delivery_ids)
    return dict.fromkeys(ids, "it was changed in that very moment; try again") | would_refuse(ids)


def would_refuse(delivery_ids: Iterable[int]) -> dict[int, str]:
    """Those of these deliveries that `replay` would leave alone now, and why."""
    ids = list(delivery_ids)
    found = {delivery.pk: delivery for delivery in Delivery.objects.filter(pk__in=ids)}
    subscriptions = Subscription.objects.in_bulk(
        {delivery.subscription_id for delivery in found.values()}
    )
    tenants = dict(
        Event.objects.filter(pk__in={delivery.event_id for delivery in found.values()}).values_list(
            "pk", "tenant"
        )
    )
    reasons = {}
    for delivery_id in ids:
        delivery = found.get(delivery_id)
        if delivery is None:
            reasons[delivery_id] = "there is no such delivery"
        elif delivery.status not in FINISHED:
            reasons[delivery_id] = f"it is {delivery.status} already"
        elif (subscription := subscriptions.get(delivery.subscription_id)) is None:
            reasons[delivery_id] = "its subscription was deleted"
        elif not subscription.all_tenants and subscription.tenant != tenants.get(
            delivery.event_id, subscription.tenant
        ):
            reasons[delivery_id] = (
                "its event is a tenant's, and its subscription is not for all now"
            )
    return reasons
