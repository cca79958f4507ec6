"""`publish`: an event and its deliveries, in the caller's own transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypedDict

from django.db import connection, transaction

from deliveries.body import InvalidEventId, build_body, validate_event_id
from deliveries.models import Event
from deliveries.tracing import is_traced, publish_span
from deliveries.waking.wakeups import wake
from subscriptions.conf import conf
from subscriptions.database import prepared_cursor
from subscriptions.ids import uuid7
from subscriptions.tenants import validate_tenant
from subscriptions.topics.rules import candidates, validate_published, validate_topic

MAX_TYPE_LENGTH = 255
# An event with one of these ids would have no address of its own in the API (RFC 3986, section
# 5.2.4, takes dots out of addresses).
_NO_IDS = frozenset({".", "..", "batch"})

_REQUIRED = frozenset({"topic", "payload"})
_KNOWN = _REQUIRED | {"event_type", "event_id", "tenant"}


class EventConflict(ValueError):
    """An event with this id exists already, with another topic, type, payload or tenant."""


class InvalidEventType(ValueError):
    """The text cannot be an event's type."""


class _NewEventBase(TypedDict):
    topic: str
    payload: dict[str, Any]


class NewEvent(_NewEventBase, total=False):
    """What `publish_many` takes for each event: the arguments of `publish`."""

    event_type: str
    event_id: str | None
    tenant: str


def publish(
    topic: str,
    payload: dict[str, Any],
    *,
    event_type: str = "",
    event_id: str | None = None,
    tenant: str = "",
) -> Event:
    """Record an event and its delivery to every subscription whose patterns match `topic`.

    Of these only the subscriptions of `tenant` get it, and those of the application itself
    (tenant `""`) that are marked `all_tenants`; never those of another tenant.

    Runs inside the caller's transaction, if there is one: the event is published if and only if
    that commits. Workers are woken after the commit; if the broker cannot be reached, the
    deliveries go out when it is back, and this call neither fails nor waits more than a second.

    A subscription that was committed before the call is always matched. Tripped subscriptions
    get a delivery that is held; paused ones get none.

    Topics whose first token is `system` are reserved for the webhook sender's own events.

    `event_id` makes it idempotent: if the id is known, with the same topic, type, payload and
    tenant, nothing is recorded and the first event comes back. Ids are the same for all tenants:
    one that another tenant has taken is a conflict, which says nothing of that tenant's event.

    Raises `InvalidTopic`, `InvalidPayload`, `PayloadTooLarge`, `InvalidEventId`,
    `InvalidEventType` or `InvalidTenant` (all of them `ValueError`) before anything is written, and
    `EventConflict` for a known id with another content. The caller's transaction stays usable.
    """
    # One event is one statement: it needs no transaction of its own, nor a savepoint for an id
    # that is taken, because then nothing was written.
    return _record([_draft(topic, payload, event_type, event_id, tenant)])[0]


def publish_many(events: Iterable[NewEvent]) -> list[Event]:
    """`publish` for many events at once: all of them or, if one is refused, none.

    One round trip, however many there are, and two more if they are given ids: a known id is
    refused after others were written.
    """
    drafts = []
    for event in events:
        if not _REQUIRED <= event.keys() <= _KNOWN:
            raise TypeError(
                "An event has the keys topic, payload, event_type, event_id and tenant, the last "
                f"three optional; unknown: {sorted(event.keys() - _KNOWN)}, "
                f"missing: {sorted(_REQUIRED - event.keys())}."
            )
        drafts.append(_draft(**event))
    if len(drafts) > 1 and any(draft.id_was_given for draft in drafts):
        with transaction.atomic():
            return _record(drafts)
    return _record(drafts) if drafts else []


# The largest body of an event of our own, whatever applications may publish.
SYSTEM_LIMIT = 64 * 1024


def publish_system(
    topic: str, payload: dict[str, Any], *, event_type: str, event_id: str, tenant: str
) -> Event:
    """`publish` for the reserved topics, which applications cannot publish themselves."""
    validate_topic(topic)
    return _record([_checked(topic, payload, event_type, event_id, tenant, limit=SYSTEM_LIMIT)])[0]


def refusals(events: Sequence[NewEvent]) -> dict[int, ValueError]:
    """Why `publish_many` refuses these events: what each alone would raise, by its place.

    For callers that were refused and want to name all that is wrong. Reads, and writes nothing.
    """
    found: dict[int, ValueError] = {}
    drafts: dict[int, _Draft] = {}
    for place, event in enumerate(events):
        try:
            drafts[place] = _draft(**event)
        except ValueError as error:
            found[place] = error
    first: dict[str, Event | _Draft] = {}
    for known in Event.objects.filter(pk__in={draft.id for draft in drafts.values()}):
        known.body = bytes(known.body)
        first[known.id] = known
    for place, draft in drafts.items():
        if not _same(first.setdefault(draft.id, draft), draft):
            found[place] = _conflict(draft.id)
    return found


@dataclass(frozen=True, slots=True)
class _Draft:
    id: str
    topic: str
    tenant: str
    type: str
    payload: dict[str, Any]
    body: bytes
    created_at: datetime
    id_was_given: bool


def _draft(
    topic: str,
    payload: dict[str, Any],
    event_type: str = "",
    event_id: str | None = None,
    tenant: str = "",
) -> _Draft:
    topic = validate_published(topic)
    return _checked(topic, payload, event_type, event_id, tenant, limit=conf().max_payload_bytes)


def _checked(
    topic: str,
    payload: dict[str, Any],
    event_type: str,
    event_id: str | None,
    tenant: str,
    *,
    limit: int,
) -> _Draft:
    tenant = validate_tenant(tenant)
    if (
        not isinstance(event_type, str)
        or len(event_type) > MAX_TYPE_LENGTH
        or not event_type.isprintable()
    ):
        raise InvalidEventType(
            f"The event type {str(event_type)[:80]!r} is not a printable text of at most "
            f"{MAX_TYPE_LENGTH} characters."
        )
    given = event_id is not None
    event_id = validate_event_id(event_id) if given else str(uuid7())
    if event_id in _NO_IDS:
        raise InvalidEventId(
            f"The event id {event_id!r} means something else in an address of the API; add to it."
        )
    created_at = datetime.now(UTC)
    body = build_body(event_id, created_at, topic, event_type, payload, limit=limit)
    return _Draft(event_id, topic, tenant, event_type, payload, body, created_at, given)


def _record(drafts: Sequence[_Draft]) -> list[Event]:
    if not is_traced():
        return _write(drafts)
    with publish_span([(draft.id, draft.topic, draft.tenant) for draft in drafts]) as traceparent:
        return _write(drafts, traceparent)


def _write(drafts: Sequence[_Draft], traceparent: str = "") -> list[Event]:
    first: dict[str, _Draft] = {}
    for draft in drafts:
        known = first.setdefault(draft.id, draft)
        if known is not draft and not _same(known, draft):
            raise _conflict(draft.id)
    recorded, to_wake, to_recover = _insert(list(first.values()), traceparent)
    if recorded and to_wake:
        transaction.on_commit(lambda: wake(to_wake), robust=True)
    if recorded and to_recover:
        transaction.on_commit(lambda: wake(to_recover, recovering=True), robust=True)
    events = {
        event_id: _event(first[event_id], number, traceparent)
        for event_id, number in recorded.items()
    }
    if len(events) < len(first):
        events |= _existing([draft for draft in first.values() if draft.id not in events])
    return [events[draft.id] for draft in drafts]


# `deliveries/migrations/0009_tenants.py` has the function, and explains it; that it counts is from
# `0011_publish_counts.py`, and its last argument, the traceparent, from `0014_traceparent.py`. The
# texts of one event are made arrays there, which costs less than to have the driver make arrays of
# one.
_PUBLISH_ONE = """
SELECT * FROM deliveries_publish_counted(
    ARRAY[%(id)s::text], ARRAY[%(topic)s::text], ARRAY[%(type)s::text], ARRAY[%(body)s::bytea],
    ARRAY[%(created_at)s::timestamptz], ARRAY[%(topic)s::text], ARRAY[%(candidates)s::text],
    %(commits_now)s::bool, ARRAY[%(tenant)s::text], ARRAY[%(tenant)s::text]
)
"""
_PUBLISH_MANY = """
SELECT * FROM deliveries_publish_counted(
    %(ids)s::text[], %(topics)s::text[], %(types)s::text[], %(bodies)s::bytea[],
    %(created)s::timestamptz[], %(distinct_topics)s::text[], %(candidates)s::text[],
    %(commits_now)s::bool, %(tenants)s::text[], %(distinct_tenants)s::text[]
)
"""

_TRACED = {
    statement: statement.replace("\n)", ", %(traceparent)s::text\n)")
    for statement in (_PUBLISH_ONE, _PUBLISH_MANY)
}


def _insert(
    drafts: Sequence[_Draft], traceparent: str
) -> tuple[dict[str, int], list[str], list[str]]:
    """Record the drafts whose ids are new, with their deliveries, all of them or none.

    Returns these ids, each with how many subscriptions of its tenant matched; and the ids of the
    subscriptions to wake: the healthy ones, and those that are failing. As texts: an event may be
    for a hundred thousand.
    """
    parameters: dict[str, Any] = {"commits_now": connection.get_autocommit()}
    if len(drafts) == 1:
        statement, draft = _PUBLISH_ONE, drafts[0]
        parameters |= {
            "id": draft.id,
            "topic": draft.topic,
            "tenant": draft.tenant,
            "type": draft.type,
            "body": draft.body,
            "created_at": draft.created_at,
            "candidates": "\n".join(candidates(draft.topic)),
        }
    else:
        statement = _PUBLISH_MANY
        asked = list(dict.fromkeys((draft.topic, draft.tenant) for draft in drafts))
        parameters |= {
            "ids": [draft.id for draft in drafts],
            "topics": [draft.topic for draft in drafts],
            "types": [draft.type for draft in drafts],
            "bodies": [draft.body for draft in drafts],
            "created": [draft.created_at for draft in drafts],
            "tenants": [draft.tenant for draft in drafts],
            "distinct_topics": [topic for topic, _ in asked],
            "distinct_tenants": [tenant for _, tenant in asked],
            "candidates": ["\n".join(candidates(topic)) for topic, _ in asked],
        }
    if traceparent:
        statement = _TRACED[statement]
        parameters["traceparent"] = traceparent
    with prepared_cursor() as cursor:
        cursor.execute(statement, parameters)
        recorded, matched, to_wake, to_recover = cursor.fetchone()
        return dict(zip(recorded, matched, strict=True)), to_wake, to_recover


def _event(draft: _Draft, matched: int, traceparent: str) -> Event:
    event = Event.from_db(
        connection.alias,
        ("id", "topic", "type", "body", "created_at", "tenant", "traceparent"),
        (
            draft.id,
            draft.topic,
            draft.type,
            draft.body,
            draft.created_at,
            draft.tenant,
            traceparent,
        ),
    )
    event.matched = matched
    return event


def _existing(drafts: Sequence[_Draft]) -> dict[str, Event]:
    found = {
        event.id: event for event in Event.objects.filter(pk__in=[draft.id for draft in drafts])
    }
    for draft in drafts:
        event = found.get(draft.id)
        if event is None:
            raise _conflict(draft.id)
        event.body = bytes(event.body)
        if not _same(event, draft):
            raise _conflict(draft.id)
    return found


def _same(first: Event | _Draft, draft: _Draft) -> bool:
    """Whether `draft` would be this event, had it been published at the same time."""
    return first.tenant == draft.tenant and first.body == build_body(
        draft.id, first.created_at, draft.topic, draft.type, draft.payload
    )


def _conflict(event_id: str) -> EventConflict:
    return EventConflict(
        f"The event id {event_id!r} is taken by an event with another topic, type, payload or "
        "tenant. Use a new id for a new event."
    )
