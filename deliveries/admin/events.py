"""Events in Django's admin, to be read.

The tables hold millions of rows, so nothing here counts them all or lists the values of a column.
"""

from __future__ import annotations

import json
from contextlib import suppress

from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from deliveries.admin.readonly import ReadOnlyAdmin
from deliveries.models import Delivery, Event
from subscriptions.admin.display import ago, link
from subscriptions.admin.tenants import ChosenTenant, tenant_link

MAX_BODY_CHARACTERS = 100_000


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    list_display = ("id", "topic", "type", "whose", "published")
    list_display_links = ("id",)
    sortable_by = ("id", "published")
    ordering = ("-created_at",)
    list_filter = (ChosenTenant,)
    search_fields = ("id",)
    search_help_text = "The event’s id, in full"
    fields = ("id", "topic", "type", "whose", "created_at", "sent_to", "pretty_body")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Event]:
        return super().get_queryset(request).defer("body")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Event], search_term: str
    ) -> tuple[QuerySet[Event], bool]:
        term = search_term.strip()
        return (queryset.filter(pk=term) if term else queryset), False

    @admin.display(description="tenant")
    def whose(self, event: Event) -> SafeString | str:
        return tenant_link(event.tenant, "deliveries_event_changelist")

    @admin.display(description="published", ordering="created_at")
    def published(self, event: Event) -> SafeString | str:
        return ago(event.created_at)

    @admin.display(description="deliveries")
    def sent_to(self, event: Event) -> SafeString | str:
        counts = (
            Delivery.objects.filter(event=event)
            .order_by()
            .values_list("status")
            .annotate(count=Count("pk"))
        )
        links = [
            (
                link(
                    f"{count:,} {status}",
                    "deliveries_delivery_changelist",
                    event=event.pk,
                    status__exact=status,
                ),
            )
            for status, count in sorted(counts)
        ]
        return format_html_join(" · ", "{}", links) or "None: no subscription matched."

    @admin.display(description="body, as it is sent")
    def pretty_body(self, event: Event) -> SafeString:
        text = bytes(event.body).decode("utf-8", errors="replace")
        with suppress(ValueError, RecursionError):  # what is no JSON is shown as it is
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        if len(text) > MAX_BODY_CHARACTERS:
            text = f"{text[:MAX_BODY_CHARACTERS]}\n… {len(text):,} characters in all"
        return format_html('<pre class="body">{}</pre>', text)
