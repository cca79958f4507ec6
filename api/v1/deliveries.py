"""`/deliveries`: list them, see the attempts of one, send it again, or discard it."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from django.db.models import OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest
from ninja import Path, Query, Router, Status

from api.auth import scope
from api.keys import Caller
from api.pages import Cursor, Limit, Listed, page_of
from api.problems import Problem, not_found, problems
from api.v1.schemas_events import (
    DeliveryRead,
    DeliveryRow,
    DeliveryStatus,
    OfEvent,
    Since,
    Tenant,
    Topic,
    Until,
)
from deliveries.keeping.discard import discard
from deliveries.keeping.finding import WantedDeliveries
from deliveries.keeping.keyset import Search
from deliveries.keeping.replay import replay, why_not
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription

MAX_ATTEMPTS = 100

router = Router(tags=["deliveries"])

DeliveryId = Annotated[int, Path(..., ge=1, le=2**63 - 1, description="The id of a delivery.")]

# A delivery has its subscription's tenant, and one of the application's may be for all tenants. A
# key that is bound to the application sees no event of others there either.
_OWN_EVENTS = Q(event__tenant="")


@router.get(
    "",
    auth=scope("deliveries:read"),
    response={200: Listed[DeliveryRow], **problems(422)},
    summary="List deliveries",
)
def list_deliveries(
    request: HttpRequest,
    limit: Limit,
    cursor: Cursor,
    status: Annotated[DeliveryStatus | None, Query(None, description="Only of this status.")],
    subscription: Annotated[UUID | None, Query(None, description="Only of this subscription.")],
    event: OfEvent,
    topic: Topic,
    tenant: Tenant,
    since: Since,
    until: Until,
) -> Any:
    """The newest first; with `status=held` by subscription, and the oldest first; with
    `status=pending` by subscription, and what is due first comes first.

    A page may hold fewer rows than `limit`, even none, and have a `next_cursor`: then so many were
    looked at that the rest is for the next page. `since` and `until` are about `created_at`;
    deliveries of a transaction that was open for more than ten minutes may be missed.
    """
    caller: Caller = request.auth  # type: ignore[attr-defined]
    if caller.tenant is not None:
        if tenant not in (None, caller.tenant):
            return _NONE
        tenant = caller.tenant
    if subscription is not None and tenant is not None and not _is_of(subscription, tenant):
        return _NONE
    wanted = WantedDeliveries(
        status=status, subscription=subscription, topic=topic, tenant=tenant, event=event,
        since=since, until=until,
    )  # fmt: skip
    own = _OWN_EVENTS if caller.tenant == "" else Q()
    # A page goes on as the one before was found, also if the topic has many more events by now.
    ways = (None, True, False) if topic is not None and cursor else (None,)
    for by_topic in ways:
        search = wanted.search(by_topic=by_topic)
        shown = Search(_with_topics(search.rows), search.chosen & own, search.by)
        try:
            found = page_of(shown, cursor=cursor, limit=limit)
            break
        except Problem:
            if by_topic is ways[-1]:
                raise
    return {"data": found.rows, "next_cursor": found.next_cursor}


_NONE: dict[str, Any] = {"data": [], "next_cursor": None}


def _with_topics(deliveries: QuerySet[Delivery]) -> QuerySet[Delivery]:
    events = Event.objects.filter(pk=OuterRef("event_id"))
    return deliveries.annotate(topic=Subquery(events.values("topic")))


def _is_of(subscription_id: UUID, tenant: str) -> bool:
    """Whether it is the tenant's: what a deleted one left says whose it was."""
    known = Subscription.objects.filter(pk=subscription_id).values_list("tenant", flat=True)
    history = Delivery.objects.filter(subscription_id=subscription_id, id__gt=0)
    newest = history.order_by("-id").values_list("tenant", flat=True)
    return tenant in (list(known) or newest[:1])


@router.get(
    "/{delivery_id}",
    auth=scope("deliveries:read"),
    response={200: DeliveryRead, **problems(404, 422)},
    summary="Read a delivery",
)
def read_delivery(request: HttpRequest, delivery_id: DeliveryId) -> Any:
    """The delivery, and what came of each request."""
    delivery: Any = _visible(request, delivery_id)
    delivery.latest_attempts = list(delivery.attempts.order_by("-number")[:MAX_ATTEMPTS])
    return delivery


@router.post(
    "/{delivery_id}/resend",
    auth=scope("deliveries:write"),
    response={202: DeliveryRow, **problems(404, 409, 422)},
    summary="Send a finished delivery again",
)
def resend_delivery(request: HttpRequest, delivery_id: DeliveryId) -> Any:
    """With the `webhook-id` that it had, whether it succeeded, failed or was discarded; its
    retries start anew. If its subscription is paused or tripped, it is held until that is active
    again."""
    _visible(request, delivery_id)
    _, changed = replay([delivery_id])
    if not changed:
        reason = why_not([delivery_id])[delivery_id]
        raise Problem(409, "cannot-resend", "The delivery is not sent again", f"Because {reason}.")
    return Status(202, _visible(request, delivery_id))


@router.post(
    "/{delivery_id}/discard",
    auth=scope("deliveries:write"),
    response={200: DeliveryRow, **problems(404, 409, 422)},
    summary="Discard a delivery",
)
def discard_delivery(request: HttpRequest, delivery_id: DeliveryId) -> Any:
    """End a delivery that is pending or held. A request that is on its way may still succeed; then
    the delivery has succeeded. `resend` takes it back."""
    _visible(request, delivery_id)
    if not discard([delivery_id]):
        status = _visible(request, delivery_id).status
        raise Problem(
            409,
            "cannot-discard",
            "The delivery is not discarded",
            f"Because it is {status} already.",
        )
    return _visible(request, delivery_id)


def _visible(request: HttpRequest, delivery_id: int) -> Delivery:
    caller: Caller = request.auth  # type: ignore[attr-defined]
    chosen = _OWN_EVENTS if caller.tenant == "" else Q()
    delivery = (
        caller.sees(_with_topics(Delivery.objects.all())).filter(chosen, pk=delivery_id).first()
    )
    if delivery is None:
        raise not_found(f"There is no delivery {delivery_id}.")
    return delivery
