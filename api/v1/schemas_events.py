"""The shapes of events and deliveries, as the API takes and shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from ninja import Query
from pydantic import BaseModel, ConfigDict, Field, SkipValidation

from api.v1.closed import Closed
from api.v1.moments import Moment

MAX_EVENTS = 1000

# Without an id: each try of the example publishes a new event.
EVENT: dict[str, Any] = {
    "topic": "order.created",
    "type": "order",
    "payload": {"id": 42, "total": "19.90"},
}
EVENT_ID = "0197f3a2-5b1c-7e44-9d0a-3c6f8b21e7d4"
PUBLISHED: dict[str, Any] = {
    "id": EVENT_ID,
    "topic": "order.created",
    "type": "order",
    "tenant": "acme",
    "created_at": "2026-01-31T12:00:00.123Z",
    "subscriptions": 2,
    "already_published": False,
}
DELIVERY: dict[str, Any] = {
    "id": 4711,
    "event": EVENT_ID,
    "topic": "order.created",
    "subscription": "01946f3e-7c3b-7d52-a7b5-8f6e9a1d2c3b",
    "tenant": "acme",
    "status": "failed",
    "next_attempt_at": None,
    "attempt_count": 12,
    "last_error": "HTTP 500",
    "created_at": "2026-01-31T12:00:00.125Z",
    "held_at": None,
    "finished_at": "2026-02-04T03:11:19.871Z",
}
ATTEMPT: dict[str, Any] = {
    "number": 12,
    "outcome": "http",
    "status_code": 500,
    "error": "HTTP 500",
    "response_body": "Internal Server Error",
    "remote_address": "203.0.113.7",
    "started_at": "2026-02-04T03:11:19.640Z",
    "duration_ms": 231,
}

DeliveryStatus = Literal["pending", "held", "succeeded", "failed", "discarded"]

Since = Annotated[
    Moment | None,
    Query(
        None,
        description="Published at this time or later: RFC 3339, with a time zone.",
        examples=["2026-01-31T12:00:00Z"],
    ),
]
Until = Annotated[
    Moment | None, Query(None, description="Published before this time, in the same form.")
]
# PostgreSQL refuses to look for NUL.
_NO_NUL = "^[^\\x00]*$"
Topic = Annotated[
    str | None,
    Query(None, description="Only this topic, no pattern.", max_length=255, pattern=_NO_NUL),
]
Tenant = Annotated[
    str | None,
    Query(
        None,
        description="Only of this tenant; empty: the application itself.",
        max_length=64,
        pattern=_NO_NUL,
    ),
]
OfEvent = Annotated[
    str | None,
    Query(None, description="Only of the event with this id.", max_length=255, pattern=_NO_NUL),
]


class EventIn(Closed):
    """One event to publish."""

    model_config = ConfigDict(json_schema_extra={"examples": [EVENT]})

    topic: str = Field(
        description="Tokens separated by dots, ten at most. Subscriptions are chosen by it.",
        json_schema_extra={"minLength": 1, "maxLength": 255},
    )
    payload: dict[str, Any] = Field(
        description="What happened: a JSON object, at most 99 levels deep."
    )
    type: str = Field(
        "",
        description="A name for the kind of event, for receivers.",
        json_schema_extra={"maxLength": 255},
    )
    id: str | None = Field(
        None,
        description="Makes the request safe to repeat: the same id with the same content is one "
        "event. Ids are common to all tenants: take a random one, a UUID. Left out: a new one.",
        json_schema_extra={"pattern": r"^(?!(\.{1,2}|batch)$)[A-Za-z0-9_.:-]{1,255}$"},
    )
    tenant: str | None = Field(
        None,
        description="Whose event it is; empty: the application's own. Left out: the key's tenant, "
        "or the application's if the key is bound to none.",
        json_schema_extra={"maxLength": 64},
    )


class EventsIn(Closed):
    """Events that are published together: all of them, or none."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"events": [EVENT]}]})

    # The view looks at each, and names all that are refused, not only those of a wrong shape.
    events: list[SkipValidation[EventIn]] = Field(
        min_length=1, max_length=MAX_EVENTS, description="1 to 1,000 events."
    )


class Published(BaseModel):
    """An event that is recorded."""

    model_config = ConfigDict(json_schema_extra={"examples": [PUBLISHED]})

    id: str
    topic: str
    type: str
    tenant: str
    created_at: datetime
    subscriptions: int = Field(
        description="How many subscriptions of its tenant get it. Subscriptions of the application "
        "for all tenants are not counted among another tenant's."
    )
    already_published: bool = Field(
        description="Whether it was published before, with this id; then nothing was done."
    )


class PublishedMany(BaseModel):
    """One for each event, in their order."""

    data: list[Published]


class EventRow(BaseModel):
    """An event in a list."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    topic: str
    type: str
    tenant: str
    created_at: datetime


class EventDelivery(BaseModel):
    """Where an event goes."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    subscription: UUID = Field(validation_alias="subscription_id")
    status: DeliveryStatus
    next_attempt_at: datetime | None
    attempt_count: int
    last_error: str
    finished_at: datetime | None


class EventRead(EventRow):
    """An event, and where it went."""

    payload: dict[str, Any]
    counts: dict[DeliveryStatus, int] = Field(
        description="How many deliveries it has in each status.", examples=[{"succeeded": 2}]
    )
    deliveries: list[EventDelivery] = Field(
        description="The newest of them, 100 at most; `GET /deliveries?event=` lists all."
    )


class DeliveryRow(BaseModel):
    """One event for one subscription."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [DELIVERY]})

    id: int
    event: str = Field(validation_alias="event_id")
    topic: str | None = Field(description="The event's topic; null if the event was pruned.")
    subscription: UUID = Field(
        validation_alias="subscription_id",
        description="The subscription's id; it may have been deleted.",
    )
    tenant: str = Field(description="The subscription's tenant.")
    status: DeliveryStatus
    next_attempt_at: datetime | None = Field(description="When it is due; only while pending.")
    attempt_count: int
    last_error: str
    created_at: datetime
    held_at: datetime | None = Field(description="Since when, or when last, it was held.")
    finished_at: datetime | None


class AttemptRead(BaseModel):
    """One HTTP request of a delivery, with its result."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"examples": [ATTEMPT]})

    number: int
    outcome: str = Field(
        description="`success`; `http`: answered, but no success; `unknown`: the worker died "
        "before it could write down what came of it; or why there was no answer: `timeout`, `dns`, "
        "`refused`, `tls` …"
    )
    status_code: int | None
    error: str
    response_body: str = Field(description="The beginning of the answer.")
    remote_address: str
    started_at: datetime
    duration_ms: int


class DeliveryRead(DeliveryRow):
    """A delivery, with its attempts."""

    attempts: list[AttemptRead] = Field(
        validation_alias="latest_attempts", description="The latest first, 100 at most."
    )
