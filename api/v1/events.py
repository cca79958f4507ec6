"""`/events`: publish one or up to a thousand, list them, and see where one went.

`deliveries.publish` decides what may be published; what it refuses is answered with a pointer to
the field. The answer to an accepted event is written by hand and not by a schema, because that is
the path that has to be cheap.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from django.db.models import Count, F
from django.http import HttpRequest, HttpResponse
from django.utils.crypto import salted_hmac
from ninja import Header, Path, Router
from pydantic import TypeAdapter, ValidationError

from api.auth import scope
from api.json import escape
from api.keys import Caller
from api.pages import Cursor, Limit, Listed, page_of
from api.problems import Problem, invalid, not_found, problems
from api.v1.schemas_events import (
    EventIn,
    EventRead,
    EventRow,
    EventsIn,
    Published,
    PublishedMany,
    Since,
    Tenant,
    Topic,
    Until,
)
from deliveries import EventConflict, NewEvent, publish, publish_many
from deliveries.body import InvalidEventId, InvalidPayload, PayloadTooLarge, timestamp
from deliveries.keeping.finding import WantedEvents
from deliveries.models import Delivery, Event
from deliveries.publishing.publish import InvalidEventType, refusals
from deliveries.tracing import continued
from subscriptions.tenants import InvalidTenant
from subscriptions.topics.rules import InvalidTopic

# So many deliveries are shown with an event; the list of deliveries has all.
MAX_DELIVERIES = 100

router = Router(tags=["events"])

EventId = Annotated[str, Path(..., description="The id of an event.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        None,
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of printable ASCII that names this request: sent again with the same "
        "key and the same content, it does nothing. A key means something for its tenant alone.",
    ),
]

_EVENTS = TypeAdapter(list[EventIn])
# Why `publish` refuses an event, by the field that it is about.
_FIELDS: dict[type[ValueError], str] = {
    InvalidTopic: "topic",
    InvalidPayload: "payload",
    PayloadTooLarge: "payload",
    InvalidEventType: "type",
    InvalidEventId: "id",
    EventConflict: "id",
    InvalidTenant: "tenant",
}
_REFUSALS: tuple[type[ValueError], ...] = (ValidationError, *_FIELDS)
_REFUSALS_OF_A_BATCH: tuple[type[Exception], ...] = (Problem, *_REFUSALS)


@router.post(
    "",
    auth=scope("events:write"),
    response={202: Published, 200: Published, **problems(400, 409, 411, 413, 415, 422)},
    summary="Publish an event",
)
def publish_event(
    request: HttpRequest, event: EventIn, idempotency_key: IdempotencyKey
) -> HttpResponse:
    """Record an event, and a delivery to every subscription that its topic matches.

    **202**: it is recorded, and will be delivered. **200**: it was published before with the same
    content, by its `id` or by the same `Idempotency-Key`; nothing was done. **409**: with other
    content. So a request without an answer can be sent again, if it has one of the two.
    """
    if idempotency_key is not None and event.id not in (None, idempotency_key):
        raise invalid(
            [{"pointer": "/id", "detail": "It is another than the Idempotency-Key; give one."}]
        )
    draft = _draft(request, event, idempotency_key)
    try:
        with continued(request.headers.get("traceparent")):
            published = publish(**draft)
    except EventConflict as error:
        raise _conflict([_of_conflict(error, event, "")]) from None
    except PayloadTooLarge as error:
        raise Problem(
            413,
            "payload-too-large",
            "The event is too large",
            str(error),
            errors=[_error(error, "")],
        ) from None
    except _REFUSALS as error:
        raise invalid([_error(error, "")]) from None
    (described,) = _described([published])
    return _answer(described, known=described["already_published"])


@router.post(
    "/batch",
    auth=scope("events:write"),
    response={202: PublishedMany, 200: PublishedMany, **problems(400, 409, 411, 413, 415, 422)},
    summary="Publish up to 1,000 events",
)
def publish_batch(
    request: HttpRequest, batch: EventsIn, idempotency_key: IdempotencyKey
) -> HttpResponse:
    """Record all of these events, or none.

    If some are refused, the answer names each of them, by number: `/events/17/topic`. **202**:
    all are recorded, some of them now. **200**: all were published before. An `Idempotency-Key`
    is for the events that have no `id`: with their numbers.
    """
    drafts: list[NewEvent] = []
    try:
        for number, event in enumerate(_EVENTS.validate_python(batch.events)):
            drafts.append(_draft(request, event, idempotency_key, number))
        with continued(request.headers.get("traceparent")):
            published = publish_many(drafts)
    except _REFUSALS_OF_A_BATCH as error:
        raise _refused(request, batch.events, idempotency_key, error) from None
    described = _described(published)
    return _answer({"data": described}, known=all(one["already_published"] for one in described))


def _draft(
    request: HttpRequest, event: EventIn, idempotency_key: str | None, number: int | None = None
) -> NewEvent:
    caller: Caller = request.auth  # type: ignore[attr-defined]
    tenant = caller.tenant_for(event.tenant)
    event_id = event.id
    if event_id is None and idempotency_key is not None:
        event_id = _id_of_key(tenant, idempotency_key, number)
    return NewEvent(
        topic=event.topic,
        payload=event.payload,
        event_type=event.type,
        event_id=event_id,
        tenant=tenant,
    )


def _id_of_key(tenant: str, key: str, number: int | None) -> str:
    """The id that a key stands for: no two tenants have the same, and none can guess another's."""
    text = json.dumps([tenant, key, number])
    digest = salted_hmac("api.v1.events", text, algorithm="sha256").digest()
    return "key_" + urlsafe_b64encode(digest).decode().rstrip("=")


def _described(events: Sequence[Event]) -> list[dict[str, Any]]:
    """`Published` for each. A query only for those that were known before."""
    known = {event.id for event in events if event.matched is None}
    counts = _counts(known) if known else {}
    described = []
    for event in events:
        described.append(
            {
                "id": event.id,
                "topic": event.topic,
                "type": event.type,
                "tenant": event.tenant,
                "created_at": timestamp(event.created_at),
                "subscriptions": counts.get(event.id, 0)
                if event.matched is None
                else event.matched,
                "already_published": event.id in known,
            }
        )
        # What has the same id further on in the batch is the same event.
        known.add(event.id)
    return described


def _counts(event_ids: Iterable[str]) -> dict[str, int]:
    counted = (
        Delivery.objects.filter(event__in=event_ids, tenant=F("event__tenant"))
        .order_by()
        .values_list("event_id")
        .annotate(Count("pk"))
    )
    return dict(counted)


def _answer(body: Any, *, known: bool) -> HttpResponse:
    return HttpResponse(
        json.dumps(body), status=200 if known else 202, content_type="application/json"
    )


def _error(error: ValueError, pointer: str) -> dict[str, str]:
    return {"pointer": f"{pointer}/{_FIELDS[type(error)]}", "detail": str(error)}


def _of_conflict(error: ValueError, event: EventIn, pointer: str) -> dict[str, str]:
    """Where the id came from: the body, or the header."""
    if event.id is not None:
        return _error(error, pointer)
    detail = "The key was used for an event with other content; a new event needs a new key."
    place = {"pointer": pointer} if pointer else {"header": "Idempotency-Key"}
    return {**place, "detail": detail}


def _conflict(errors: list[dict[str, str]]) -> Problem:
    return Problem(
        409,
        "event-conflict",
        "The id belongs to another event",
        "An event with this id, or by this Idempotency-Key, was published before, and is another "
        "one. Nothing was done.",
        errors=errors,
    )


def _refused(
    request: HttpRequest, events: list[Any], idempotency_key: str | None, error: Exception
) -> Problem:
    """The problem of a batch: every event that is refused, with the reasons."""
    by_number: dict[int, list[dict[str, str]]] = {}
    if isinstance(error, ValidationError):
        for one in error.errors(include_url=False, include_input=False):
            pointer = "".join(f"/{escape(str(step))}" for step in ("events", *one["loc"]))
            found = {"pointer": pointer, "detail": one["msg"]}
            by_number.setdefault(int(one["loc"][0]), []).append(found)
    conflicts: set[int] = set()
    strangers: dict[int, Problem] = {}
    drafts: dict[int, NewEvent] = {}
    given: dict[int, EventIn] = {}
    for number in range(len(events)):
        if number in by_number:
            continue
        try:
            given[number] = EventIn.model_validate(events[number])
            drafts[number] = _draft(request, given[number], idempotency_key, number)
        except Problem as stranger:
            strangers[number] = stranger
            pointer = f"/events/{number}/tenant"
            by_number[number] = [{"pointer": pointer, "detail": stranger.detail}]
    sound = list(drafts)
    for place, reason in refusals(list(drafts.values())).items():
        number = sound[place]
        pointer = f"/events/{number}"
        if isinstance(reason, EventConflict):
            conflicts.add(number)
            by_number[number] = [_of_conflict(reason, given[number], pointer)]
        else:
            by_number[number] = [_error(reason, pointer)]
    errors = [one for number in sorted(by_number) for one in by_number[number]]
    if not errors:
        # What was in the way is gone by now.
        return _conflict([])
    if strangers.keys() == by_number.keys():
        problem = next(iter(strangers.values()))
        problem.members["errors"] = errors
        return problem
    return _conflict(errors) if conflicts == by_number.keys() else invalid(errors, len(errors))


@router.get(
    "",
    auth=scope("deliveries:read"),
    response={200: Listed[EventRow], **problems(422)},
    summary="List events",
)
def list_events(
    request: HttpRequest,
    limit: Limit,
    cursor: Cursor,
    topic: Topic,
    tenant: Tenant,
    since: Since,
    until: Until,
) -> Any:
    """The newest first. A page may hold fewer than `limit`, even none, and have a `next_cursor`."""
    caller: Caller = request.auth  # type: ignore[attr-defined]
    if caller.tenant is not None:
        if tenant not in (None, caller.tenant):
            return {"data": [], "next_cursor": None}
        tenant = caller.tenant
    search = WantedEvents(topic=topic, tenant=tenant, since=since, until=until).search()
    found = page_of(search, cursor=cursor, limit=limit)
    return {"data": found.rows, "next_cursor": found.next_cursor}


@router.get(
    "/{event_id}",
    auth=scope("deliveries:read"),
    response={200: EventRead, **problems(404)},
    summary="Read an event",
)
def read_event(request: HttpRequest, event_id: EventId) -> Any:
    """The event with its payload, and the deliveries that the key may see."""
    caller: Caller = request.auth  # type: ignore[attr-defined]
    # PostgreSQL refuses to look for NUL.
    visible = caller.sees(Event.objects.all()) if event_id.isprintable() else Event.objects.none()
    event = visible.filter(pk=event_id).first()
    if event is None:
        raise not_found(f"There is no event {event_id[:80]!r}.")
    deliveries = caller.sees(Delivery.objects.filter(event=event))
    counts = deliveries.order_by().values_list("status").annotate(Count("pk"))
    return {
        **{name: getattr(event, name) for name in EventRow.model_fields},
        "payload": event.payload,
        "counts": dict(counts),
        "deliveries": list(deliveries.order_by("-id")[:MAX_DELIVERIES]),
    }
