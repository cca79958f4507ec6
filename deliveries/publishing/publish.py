"""`publish`: an event and its deliveries, in the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

from django.db import connection, transaction

from deliveries.models import Event
from deliveries.publishing.body import build_body, validate_event_id
from deliveries.waking.wakeups import wake
from subscriptions.conf import conf
from subscriptions.database import prepared_cursor
from subscriptions.ids import uuid7
from subscriptions.index import READ_VERSION, read_version, topic_index
from subscriptions.topics import validate_topic

MOST_TYPE_CHARACTERS = 255


class EventConflict(ValueError):
    """An event with this id exists already, with another topic, type or payload."""


class _Required(TypedDict):
    topic: str
    payload: dict[str, Any]


class NewEvent(_Required, total=False):
    """What `publish_many` takes for each event: the arguments of `publish`."""

    event_type: str
    event_id: str | None


def publish(
    topic: str,
    payload: dict[str, Any],
    *,
    event_type: str = "",
    event_id: str | None = None,
) -> Event:
    """Record an event and its delivery to every subscription whose patterns match `topic`.

    Runs inside the caller's transaction, if there is one: the event is published if and only if
    that commits. Workers are woken after the commit; should the broker be away, the deliveries
    go out when it is back, and this call neither fails nor waits more than a second.

    A subscription that was committed before the call is always matched. Tripped subscriptions
    get a delivery that is held; paused ones get none.

    `event_id` makes it idempotent: if the id is known, with the same topic, type and payload,
    nothing is recorded and the first event comes back.

    Raises `InvalidTopic`, `InvalidPayload`, `PayloadTooLarge` or `InvalidEventId` (all of them
    `ValueError`) before anything is written, and `EventConflict` for a known id with another
    content. The caller's transaction stays usable.
    """
    event = NewEvent(topic=topic, payload=payload, event_type=event_type, event_id=event_id)
    return publish_many([event])[0]


def publish_many(events: Iterable[NewEvent]) -> list[Event]:
    """`publish` for many events at once: all of them or, if one is refused, none.

    One round trip for the events and one for their deliveries, however many there are.
    """
    events = list(events)
    drafts = [_draft(event) for event in events]
    if not drafts:
        return []
    # Only a known id can be refused after something was written. Without one, a transaction of
    # our own around the one statement, or a savepoint in the caller's, would be two round trips
    # for nothing.
    known_ids = any(event.get("event_id") is not None for event in events)
    if not known_ids and connection.get_autocommit():
        return _record(drafts)
    with transaction.atomic(savepoint=known_ids):
        return _record(drafts)


@dataclass(frozen=True, slots=True)
class _Draft:
    id: str
    topic: str
    type: str
    payload: dict[str, Any]
    body: bytes
    created_at: datetime


def _draft(event: NewEvent) -> _Draft:
    unknown = set(event) - {"topic", "payload", "event_type", "event_id"}
    missing = {"topic", "payload"} - set(event)
    if unknown or missing:
        raise TypeError(
            "An event has the keys topic, payload, event_type and event_id, the last two "
            f"optional; unknown: {sorted(unknown)}, missing: {sorted(missing)}."
        )
    topic = validate_topic(event["topic"])
    event_type = event.get("event_type", "")
    if (
        not isinstance(event_type, str)
        or len(event_type) > MOST_TYPE_CHARACTERS
        or not event_type.isprintable()
    ):
        raise ValueError(
            f"The event type {str(event_type)[:80]!r} is not a printable text of at most "
            f"{MOST_TYPE_CHARACTERS} characters."
        )
    event_id = event.get("event_id")
    event_id = str(uuid7()) if event_id is None else validate_event_id(event_id)
    created_at = datetime.now(UTC)
    body = build_body(
        event_id, created_at, topic, event_type, event["payload"], limit=conf().max_payload_bytes
    )
    return _Draft(event_id, topic, event_type, event["payload"], body, created_at)


# Events, deliveries, and whom to wake: all or nothing, in one round trip. Nothing is written if
# the topic index is not of the version that the matches are of; then the version that it is of
# comes back, to match anew.
#
# The state of a subscription is read here, not remembered by the index: a trip or a pause needs
# no new index, and what is deleted drops out by itself. A lane that rests needs no wake-up; nor
# does a failing one that is being tried just now, because whoever tries it looks again after; if
# this is committed by then, and not by a caller who takes his time. (What falls into the moment
# between is found by the sweep.)
_PUBLISH = f"""
WITH seen (version, last_change) AS MATERIALIZED (SELECT {READ_VERSION}),
event AS (
    INSERT INTO deliveries_event (id, topic, type, body, created_at)
    SELECT e.* FROM seen, unnest(
        %(ids)s::text[], %(topics)s::text[], %(types)s::text[], %(bodies)s::bytea[],
        %(created)s::timestamptz[]
    ) AS e (id, topic, type, body, created_at)
    WHERE %(any)s::bool OR (seen.version = %(version)s::bigint AND seen.last_change IS NULL)
    ORDER BY e.id  -- two calls with the same ids must not lock each other out
    ON CONFLICT (id) DO NOTHING
    RETURNING id
), target AS MATERIALIZED (
    SELECT m.number, m.event_id, s.id AS subscription_id, s.enabled,
        s.consecutive_failures > 0 OR coalesce(lane.failures > 0, false) AS failing,
        coalesce(
            lane.resume_at > now()
            OR (%(alone)s::bool AND lane.failures > 0 AND lane.lease_until > now()),
            false
        ) AS resting
    FROM unnest(%(events)s::text[], %(subscriptions)s::uuid[]) WITH ORDINALITY
        AS m (event_id, subscription_id, number)
    JOIN event ON event.id = m.event_id
    JOIN subscriptions_subscription s ON s.id = m.subscription_id
    LEFT JOIN deliveries_lane lane ON lane.subscription_id = s.id
    WHERE s.enabled OR s.auto_disabled_at IS NOT NULL
), delivery AS (
    INSERT INTO deliveries_delivery (
        event_id, subscription_id, status, next_attempt_at, attempt_count, retries_used,
        last_error, created_at, held_at
    )
    SELECT event_id, subscription_id, CASE WHEN enabled THEN 'pending' ELSE 'held' END,
        CASE WHEN enabled THEN now() END, 0, 0, '', now(), CASE WHEN NOT enabled THEN now() END
    FROM target ORDER BY number
)
SELECT seen.version, seen.last_change, ARRAY(SELECT id FROM event),
    ARRAY(
        SELECT DISTINCT subscription_id FROM target WHERE enabled AND NOT resting AND NOT failing
    ),
    ARRAY(SELECT DISTINCT subscription_id FROM target WHERE enabled AND NOT resting AND failing)
FROM seen
"""


def _record(drafts: Sequence[_Draft]) -> list[Event]:
    first: dict[str, _Draft] = {}
    for draft in drafts:
        known = first.setdefault(draft.id, draft)
        if known is not draft and not _same(known.body, known.created_at, draft):
            raise _conflict(draft.id)
    recorded = _insert(list(first.values()))
    inserted = set(recorded.event_ids)
    events = {
        draft.id: Event(
            id=draft.id,
            topic=draft.topic,
            type=draft.type,
            body=draft.body,
            created_at=draft.created_at,
        )
        for draft in first.values()
        if draft.id in inserted
    }
    for event in events.values():
        event._state.adding = False
        event._state.db = connection.alias
    # Events that were published together share their messages too.
    one_by_one = len(first) == 1
    if recorded.healthy:
        transaction.on_commit(partial(wake, recorded.healthy, one_by_one=one_by_one))
    if recorded.failing:
        transaction.on_commit(
            partial(wake, recorded.failing, recovering=True, one_by_one=one_by_one)
        )
    if len(events) < len(first):
        events |= _existing([draft for draft in first.values() if draft.id not in events])
    return [events[draft.id] for draft in drafts]


class _Recorded(NamedTuple):
    """What `_PUBLISH` gives: what it saw of the index, what is new, and whom to wake."""

    version: int | None
    last_change: int | None
    event_ids: list[str]
    healthy: list[UUID]
    failing: list[UUID]


def _insert(drafts: Sequence[_Draft]) -> _Recorded:
    """Record the drafts, with the matches at hand if they still hold, else with new ones."""
    index = topic_index()
    topics = [draft.topic for draft in drafts]
    at_hand = index.match_at_hand(topics)
    if at_hand is not None:
        version, matches = at_hand
        recorded = _try_to_insert(drafts, matches, version)
        seen = (recorded.version, recorded.last_change)
        if seen == (version, None):
            return recorded
    else:
        seen = read_version()
    # This was read after the call began: what is committed meanwhile need not be matched.
    return _try_to_insert(drafts, index.match_many(topics, seen), None)


def _try_to_insert(
    drafts: Sequence[_Draft], matches: Sequence[Sequence[UUID]], version: int | None
) -> _Recorded:
    """Record the drafts if the index is still of that version; None stands for any."""
    event_ids: list[str] = []
    subscription_ids: list[UUID] = []
    for draft, matching in zip(drafts, matches, strict=True):
        event_ids += [draft.id] * len(matching)
        subscription_ids += matching
    with prepared_cursor() as cursor:
        cursor.execute(
            _PUBLISH,
            {
                "ids": [draft.id for draft in drafts],
                "topics": [draft.topic for draft in drafts],
                "types": [draft.type for draft in drafts],
                "bodies": [draft.body for draft in drafts],
                "created": [draft.created_at for draft in drafts],
                "events": event_ids,
                "subscriptions": subscription_ids,
                "version": version,
                "any": version is None,
                "alone": connection.get_autocommit(),
            },
        )
        return _Recorded._make(cursor.fetchone())


def _existing(drafts: Sequence[_Draft]) -> dict[str, Event]:
    found = {event.id: event for event in Event.objects.filter(pk__in=[one.id for one in drafts])}
    for draft in drafts:
        event = found.get(draft.id)
        if event is None or not _same(bytes(event.body), event.created_at, draft):
            raise _conflict(draft.id)
        event.body = bytes(event.body)
    return found


def _same(body: bytes, created_at: datetime, draft: _Draft) -> bool:
    """Whether `draft` would have had this body, had it been published at the same time."""
    return body == build_body(draft.id, created_at, draft.topic, draft.type, draft.payload)


def _conflict(event_id: str) -> EventConflict:
    return EventConflict(
        f"The event id {event_id!r} is taken by an event with another topic, type or payload. "
        "Use a new id for a new event."
    )
