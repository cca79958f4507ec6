"""Every operation of the API, once: what is asked, and how the answer is read.

An operation is a generator: it yields the calls that it needs, one after the other, gets what
each answered, and returns its result. Who runs it, with threads or with coroutines, is not known
here.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NotRequired, TypedDict

from webhooks_client.answers import (
    Delivery,
    DeliveryDetails,
    Event,
    EventDetails,
    NewSubscription,
    Page,
    Published,
    Replayed,
    ReplayedSome,
    RotatedSecret,
    Stats,
    Subscription,
    TestResult,
)
from webhooks_client.calls import (
    Call,
    Operation,
    answer_as,
    call,
    encode,
    given,
    nothing,
    once,
    page_of,
    with_etag,
)
from webhooks_client.errors import WebhooksError

# What goes into one batch: as many events as the API takes, and half the bytes that it takes by
# default.
MAX_BATCH = 1000
MAX_BATCH_BYTES = 4 * 1024 * 1024


# Publishing.


class NewEvent(TypedDict):
    """What `publish_many` takes for each event: the arguments of `publish`."""

    topic: str
    payload: Mapping[str, Any]
    type: NotRequired[str]
    id: NotRequired[str | None]
    tenant: NotRequired[str | None]


def new_id() -> str:
    """A new id for an event: a UUID version 7, which sorts by its time (RFC 9562)."""
    value = (time.time_ns() // 1_000_000 << 80) | int.from_bytes(os.urandom(10), "big")
    value &= ~(0xF << 76) & ~(0x3 << 62)
    return str(uuid.UUID(int=value | (7 << 76) | (2 << 62)))


def publish(
    topic: str,
    payload: Mapping[str, Any],
    type: str = "",
    id: str | None = None,
    tenant: str | None = None,
) -> Operation[Published]:
    """Publish an event; once it returns, the event is recorded and will be delivered.

    The event gets its id before the first request (`new_id`, unless you give one), so that any
    number of tries record one event. `tenant`: whose event it is; None: the key's own.

    Raises `Conflict` if `id` belongs to another event, `Invalid` with the place of what is wrong,
    and `WebhooksError` for all else; the error's `event_ids` hold the id, for another call.
    """
    event = _event(NewEvent(topic=topic, payload=payload, type=type, id=id, tenant=tenant))
    try:
        published: Published = yield call(
            answer_as(Published), "POST", "events", content=encode(event), repeatable=True
        )
    except WebhooksError as error:
        error.event_ids = (str(event["id"]),)
        raise
    return published


def publish_many(events: Iterable[NewEvent]) -> Operation[list[Published]]:
    """Publish any number of events; the results are in their order.

    They go out in batches, each of up to 1,000 events and 4 MiB; each is recorded wholly or not
    at all. Each event gets its id before the first request, unless it has one. If a batch fails,
    those before it are published, and those after it are not: call again with the ids that the
    error's `event_ids` hold, and nothing is published twice.
    """
    all_given = [_event(event) for event in events]
    published: list[Published] = []
    try:
        for batch in batches([encode(event) for event in all_given]):
            content = b'{"events":[' + b",".join(batch) + b"]}"
            some: _ManyPublished = yield call(
                answer_as(_ManyPublished),
                "POST",
                "events",
                "batch",
                content=content,
                repeatable=True,
            )  # fmt: skip
            published += some.data
    except WebhooksError as error:
        error.event_ids = tuple(str(event["id"]) for event in all_given)
        raise
    return published


@dataclass(frozen=True)
class _ManyPublished:
    data: tuple[Published, ...]


def _event(event: NewEvent) -> dict[str, object]:
    """An event as the API takes it, with an id. `TypeError` for a key that there is not."""
    if unknown := event.keys() - NewEvent.__annotations__.keys():
        raise TypeError(f"An event has no {', '.join(sorted(unknown))}.")
    return {**given(**event), "id": event.get("id") or new_id()}


def batches(encoded: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Runs of events that are small enough for one request; an event alone may be of any size."""
    begin = size = 0
    for place, event in enumerate(encoded):
        if place > begin and (
            place - begin >= MAX_BATCH or size + len(event) + 1 > MAX_BATCH_BYTES
        ):
            yield encoded[begin:place]
            begin, size = place, 0
        size += len(event) + 1
    if begin < len(encoded):
        yield encoded[begin:]


# Events.


def list_events(
    *,
    topic: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[Page[Event]]:
    """The events that the key may see, the newest first.

    `topic`: this one, without wildcards. `since` (included) and `until` (not): when it was
    published. `limit`: how many on a page. `cursor`: a `next_cursor` to begin at.
    """
    query = {
        "topic": topic, "tenant": tenant, "since": since, "until": until,
        "limit": limit, "cursor": cursor,
    }  # fmt: skip
    return call(page_of(Event), "GET", "events", query=query)


def get_event(event_id: str) -> Operation[EventDetails]:
    """An event, with its payload and where it went. Raises `NotFound`."""
    return once(call(answer_as(EventDetails), "GET", "events", event_id))


# Deliveries.


def list_deliveries(
    *,
    status: str | None = None,
    subscription: str | None = None,
    event: str | None = None,
    topic: str | None = None,
    tenant: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[Page[Delivery]]:
    """The deliveries that the key may see.

    `status`: `pending`, `held`, `succeeded`, `failed` or `discarded`. `subscription` and `event`
    are ids; the rest is as for events.
    """
    query = {
        "status": status, "subscription": subscription, "event": event, "topic": topic,
        "tenant": tenant, "since": since, "until": until, "limit": limit, "cursor": cursor,
    }  # fmt: skip
    return call(page_of(Delivery), "GET", "deliveries", query=query)


def get_delivery(delivery_id: int) -> Operation[DeliveryDetails]:
    """A delivery, with what came of each request. Raises `NotFound`."""
    return once(call(answer_as(DeliveryDetails), "GET", "deliveries", str(delivery_id)))


def resend_delivery(delivery_id: int) -> Operation[Delivery]:
    """Send a finished delivery again, with the `webhook-id` that it had.

    Raises `NotFound`, and `Conflict` if it is pending or held already.
    """
    return once(call(answer_as(Delivery), "POST", "deliveries", str(delivery_id), "resend"))


def discard_delivery(delivery_id: int) -> Operation[Delivery]:
    """End a delivery that is pending or held. Raises `NotFound`, and `Conflict` if it is not."""
    return once(call(answer_as(Delivery), "POST", "deliveries", str(delivery_id), "discard"))


# Subscriptions.


def create_subscription(
    name: str,
    url: str,
    topic_patterns: Sequence[str] = (),
    *,
    groups: Sequence[str] | None = None,
    tenant: str | None = None,
    all_tenants: bool | None = None,
    headers: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    recovery: str | None = None,
    enabled: bool | None = None,
    secret: str | None = None,
) -> Operation[NewSubscription]:
    """Make a subscription; its `secret` is in what this returns, and never again.

    `groups`: names of pattern groups of the server's, added to `topic_patterns`. What is None is
    as the server has it by default. Raises `Conflict` if the name is taken, and `Invalid`, which
    says what is wrong with the URL or a pattern.
    """
    body = {"name": name, "url": url, "topic_patterns": list(topic_patterns)} | given(
        groups=groups, tenant=tenant, all_tenants=all_tenants, headers=headers,
        max_in_flight=max_in_flight, recovery=recovery, enabled=enabled, secret=secret,
    )  # fmt: skip
    return once(call(with_etag(NewSubscription), "POST", "subscriptions", content=encode(body)))


def list_subscriptions(
    *,
    state: str | None = None,
    topic: str | None = None,
    host: str | None = None,
    tenant: str | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[Page[Subscription]]:
    """The subscriptions that the key may see, the newest first.

    `state`: `active`, `paused` or `tripped`. `topic`: those that an event of this topic reaches.
    `host`: those whose URL has this host. `limit`: how many on a page. `cursor`: a `next_cursor`
    to begin at.
    """
    query = {
        "state": state, "topic": topic, "host": host, "tenant": tenant,
        "limit": limit, "cursor": cursor,
    }  # fmt: skip
    return call(page_of(Subscription), "GET", "subscriptions", query=query)


def get_subscription(subscription_id: str) -> Operation[Subscription]:
    """A subscription. Raises `NotFound`."""
    return once(call(with_etag(Subscription), "GET", "subscriptions", subscription_id))


def update_subscription(
    subscription_id: str,
    *,
    etag: str | None = None,
    name: str | None = None,
    url: str | None = None,
    topic_patterns: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    recovery: str | None = None,
    enabled: bool | None = None,
) -> Operation[Subscription]:
    """Change what is not None; returns the subscription as it is then.

    `enabled=True` resets the circuit of a tripped one and sends what was held; `enabled=False`
    pauses. `etag`: that of the subscription as you know it; `PreconditionFailed` if somebody has
    changed it since. Raises `NotFound`, `Conflict` and `Invalid` as well. `tenant` and
    `all_tenants` never change.
    """
    body = given(
        name=name, url=url, topic_patterns=topic_patterns, groups=groups, headers=headers,
        max_in_flight=max_in_flight, recovery=recovery, enabled=enabled,
    )  # fmt: skip
    return once(
        call(
            with_etag(Subscription), "PATCH", "subscriptions", subscription_id,
            content=encode(body), etag=etag,
        )
    )  # fmt: skip


def delete_subscription(subscription_id: str, *, etag: str | None = None) -> Operation[None]:
    """Delete a subscription; what waits for it is discarded. Raises `NotFound`, and
    `PreconditionFailed` as `update` does."""
    return once(call(nothing, "DELETE", "subscriptions", subscription_id, etag=etag))


def send_test_event(subscription_id: str, topic: str | None = None) -> Operation[TestResult]:
    """Send one signed test event, and wait for what the receiver says: up to ten seconds, or what
    the server's WEBHOOKS_REQUEST_TIMEOUT is; the client's `timeout` must be longer."""
    content = encode(given(topic=topic))
    return once(
        call(
            answer_as(TestResult), "POST", "subscriptions", subscription_id, "test", content=content
        )
    )


def rotate_secret(
    subscription_id: str, *, overlap: float | None = None, secret: str | None = None
) -> Operation[RotatedSecret]:
    """Give a subscription a new signing secret; it is in what this returns, and never again.

    `overlap`: seconds that the old ones stay valid (None: as the server has it, a day).
    `secret`: use this one instead.
    """
    content = encode(given(overlap=overlap, secret=secret))
    return once(
        call(
            answer_as(RotatedSecret), "POST", "subscriptions", subscription_id, "rotate-secret",
            content=content,
        )
    )  # fmt: skip


def reset_subscription(
    subscription_id: str, *, held: str | None = None, etag: str | None = None
) -> Operation[Subscription]:
    """Enable a tripped or paused subscription. `held`: what becomes of what was held, `send` (the
    default) or `discard`. Raises `PreconditionFailed` as `update` does."""
    return once(
        call(
            with_etag(Subscription), "POST", "subscriptions", subscription_id, "reset",
            content=encode(given(held=held)), etag=etag,
        )
    )  # fmt: skip


def replay_subscription(
    subscription_id: str,
    *,
    status: Sequence[str] | None = None,
    topic: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Operation[Replayed]:
    """Send a subscription's finished deliveries again, with the `webhook-id` that they had.

    `status`: which of `succeeded`, `failed` and `discarded` (None: the last two). `topic`: of
    events with this very topic. `since` (included) and `until` (not): when they were published.
    Takes as many requests as it needs; if one fails, what was replayed before it stays so.
    """
    chosen = given(status=status, topic=topic, since=since, until=until)
    pending = held = 0
    cursor = None
    while True:
        content = encode(chosen | given(cursor=cursor))
        some: ReplayedSome = yield call(
            answer_as(ReplayedSome),
            "POST",
            "subscriptions",
            subscription_id,
            "replay",
            content=content,
        )
        pending, held, cursor = pending + some.pending, held + some.held, some.next_cursor
        if cursor is None:
            return Replayed(pending, held)


def subscription_stats(subscription_id: str) -> Operation[Stats]:
    """What waits for a subscription, whether it is sent to, and how the newest deliveries went."""
    return once(call(answer_as(Stats), "GET", "subscriptions", subscription_id, "stats"))
