"""Events in Django's admin, to be read: what was published, where it went, and where it did not.

The table holds millions of rows, so nothing here counts them or lists the values of a column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, path, reverse
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from deliveries.admin.readonly import BY_SINCE, BY_UNTIL, ReadOnlyAdmin, by, moment
from deliveries.admin.subscriptions import STATUS_KINDS
from deliveries.keeping.finding import WantedEvents
from deliveries.keeping.keyset import Search
from deliveries.models import Delivery, Event
from deliveries.publishing.reach import Reach, reach
from subscriptions.admin.display import ago, chip, link, page_of, short, state_chip
from subscriptions.admin.tenants import tenant_link
from subscriptions.models import Subscription
from subscriptions.tenants import InvalidTenant
from subscriptions.times import age, exact
from subscriptions.topics.rules import InvalidTopic

MAX_BODY_CHARACTERS = 100_000
# Deliveries that an event's page names, and subscriptions that it does not reach.
MAX_DELIVERIES = 50
MAX_MISSED = 20
# Subscriptions that the page of a topic names.
MAX_REACHED = 100
_HEX_ROW = 16


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ("id", "topic", "type", "whose", "published")
    list_display_links = ("id",)
    list_filter = (by("topic"), BY_SINCE, BY_UNTIL, by("tenant"))
    search_fields = ("id",)
    search_help_text = "The event’s id, in full"
    page_template = "admin/deliveries/event.html"

    def search(self, values: Mapping[str, str], term: str) -> tuple[Search[Any], list[str]]:
        search = WantedEvents(
            topic=values.get("topic"),
            tenant=values.get("tenant"),
            since=moment(values, "since"),
            until=moment(values, "until"),
        ).search()
        if term:
            search = Search(search.rows.filter(pk=term), search.chosen, search.by)
        return search, []

    def details(self, request: HttpRequest, event: Event) -> dict[str, Any]:
        deliveries = Delivery.objects.filter(event=event)
        details: dict[str, Any] = {
            "event": event,
            "facts": [
                ("Topic", event.topic),
                ("Type", event.type or "–"),
                ("Tenant", self.whose(event)),
                ("Published", f"{exact(event.created_at)} ({age(event.created_at)})"),
            ],
            "body": readable(bytes(event.body)),
        }
        if event.traceparent:
            details["facts"].append(("Trace", event.traceparent.split("-")[1]))
        if request.user.has_perm("deliveries.view_delivery"):
            details["sent_to"] = _counted(event, deliveries)
            details["went_to"] = _named(deliveries)
            details["max_deliveries"] = MAX_DELIVERIES
        if request.user.has_perm("subscriptions.view_subscription"):
            found = reach(event.topic, event.tenant, misses=MAX_MISSED)
            missed = _missed(event, deliveries, found)
            details["missed"] = missed[:MAX_MISSED]
            cut = found.more or not found.all_looked_at or len(missed) > MAX_MISSED
            details["missed_more"] = "there are more." if cut else "the nearest come first."
            query = urlencode({"topic": event.topic, "tenant": event.tenant})
            details["now"] = f"{reverse('admin:deliveries_event_reach')}?{query}"
        return details

    # Whom would a topic reach?

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.reach_view)
        return [path("reach/", view, name="deliveries_event_reach"), *super().get_urls()]

    def reach_view(self, request: HttpRequest) -> HttpResponse:
        if not request.user.has_perm("subscriptions.view_subscription"):
            raise PermissionDenied
        topic, tenant = (request.GET.get(name, "").strip() for name in ("topic", "tenant"))
        found, error = None, ""
        if topic:
            try:
                found = reach(topic, tenant, limit=MAX_REACHED)
            except (InvalidTopic, InvalidTenant) as refusal:
                error = str(refusal)
        return self.page(
            request,
            "admin/deliveries/reach.html",
            "Whom would a topic reach?",
            topic=topic,
            tenant=tenant,
            error=error,
            found=found,
            reached=[
                (_subscription(one.subscription), state_chip(one.subscription), one.patterns,
                 _BECOMES[one.becomes])
                for one in (found.reached if found else ())
            ],
            missed=[
                (_subscription(one.subscription), one.pattern, one.why)
                for one in (found.missed if found else ())
            ],
        )  # fmt: skip

    @admin.display(description="tenant")
    def whose(self, event: Event) -> SafeString | str:
        return tenant_link(event.tenant, "deliveries_event_changelist")

    @admin.display(description="published")
    def published(self, event: Event) -> SafeString | str:
        return ago(event.created_at)


_BECOMES = {
    "pending": "It would be sent.",
    "held": "It would be held: the subscription is tripped.",
    "": "It would get nothing: the subscription is paused.",
}


def readable(body: bytes) -> str:
    """JSON indented, other text as it is, and what is no text in hexadecimal, in part if long."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        rows = [body[at : at + _HEX_ROW] for at in range(0, len(body), _HEX_ROW)]
        text = "\n".join(row.hex(" ") for row in rows)
    else:
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    if len(text) > MAX_BODY_CHARACTERS:
        text = f"{text[:MAX_BODY_CHARACTERS]}\n… {len(text):,} characters in all"
    return text


def _counted(event: Event, deliveries: QuerySet[Delivery]) -> list[SafeString]:
    """How many there are in each status: no more rows than the event has deliveries."""
    counts = deliveries.order_by().values_list("status").annotate(count=Count("pk"))
    changelist = "deliveries_delivery_changelist"
    return [
        link(f"{count:,} {status}", changelist, event=event.pk, status__exact=status)
        for status, count in sorted(counts)
    ]


def _named(deliveries: QuerySet[Delivery]) -> list[tuple[Any, ...]]:
    rows = list(deliveries.order_by("pk")[:MAX_DELIVERIES])
    known = Subscription.objects.only("name", "tenant").in_bulk(
        {one.subscription_id for one in rows}
    )
    return [
        (
            chip(str(Delivery.Status(one.status).label), STATUS_KINDS[one.status]),
            link(known.get(one.subscription_id, "(deleted)"), page_of(Delivery), one.pk),
            one.attempt_count,
            short(one.last_error, 80) if one.last_error else "",
        )
        for one in rows
    ]


def _missed(event: Event, deliveries: QuerySet[Delivery], found: Reach) -> list[tuple[Any, ...]]:
    """Who did not get it, and why: those whom it would reach now, and the nearest others."""
    reached = {one.subscription.pk: one for one in found.reached}
    went_to = set(
        deliveries.filter(subscription_id__in=reached).values_list("subscription_id", flat=True)
    )
    rows = []
    for key, one in reached.items():
        if key not in went_to:
            why = "it was paused when this was published, or its patterns did not match then"
            if one.subscription.created_at > event.created_at:
                made, published = one.subscription.created_at, event.created_at
                why = (
                    f"it was made later, at {exact(made, published)}; "
                    f"this was published at {exact(published, made)}"
                )
            elif not one.becomes:
                why = "it is paused"
            rows.append((_subscription(one.subscription), ", ".join(one.patterns), why))
    return rows + [(_subscription(one.subscription), one.pattern, one.why) for one in found.missed]


def _subscription(subscription: Subscription) -> SafeString:
    return link(subscription, page_of(Subscription), subscription.pk)
