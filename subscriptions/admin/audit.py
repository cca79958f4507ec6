"""The audit in the admin: who did what, and what was told of it. Nothing here can be changed."""

from __future__ import annotations

import json
from typing import Any, ClassVar
from uuid import UUID

from django.contrib import admin
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.safestring import SafeString

from subscriptions.admin.careful import CarefulAdmin
from subscriptions.admin.display import ago, chip, short
from subscriptions.models import AuditEntry
from subscriptions.times import age, exact

# As many entries are counted and can be paged through; who looks for older ones narrows the list.
MAX_LISTED = 5000

_KINDS = {
    **dict.fromkeys(("tripped", "still_tripped", "fuse_blown", "deleted"), "bad"),
    **dict.fromkeys(("degraded", "held_expiring", "discarded"), "busy"),
    **dict.fromkeys(("recovered", "reset", "resumed", "fuse_reset", "created"), "good"),
}


class CountingSome(Paginator):  # type: ignore[type-arg]
    """Counts no further than `MAX_LISTED`, by the index that lists."""

    @cached_property
    def count(self) -> int:
        return len(self.object_list.order_by().values_list("pk")[:MAX_LISTED])  # type: ignore[attr-defined]


class SubscriptionFilter(admin.SimpleListFilter):
    """By the id, from a subscription's page: also of one that was deleted."""

    title = parameter_name = "subscription"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        value = self.value()
        return [] if value is None else [(value, _name(value))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        key = _uuid(value)
        return queryset.none() if key is None else queryset.filter(subscription_id=key)


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _name(text: str) -> str:
    key = _uuid(text)
    newest = AuditEntry.objects.of(key).first() if key else None
    return newest.subject if newest else "unknown"


@admin.register(AuditEntry)
class AuditEntryAdmin(CarefulAdmin):
    list_display = ("when", "what", "about", "who", "how", "told_now")
    list_display_links = ("when",)
    # Each of these has an index, in the order of the list.
    list_filter = ("action", "via", SubscriptionFilter)
    list_per_page = 50
    sortable_by = ()
    ordering = ("-at", "-id")
    paginator = CountingSome
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    fields = ("exactly", "what", "about", "tenant", "who", "how", "details", "notice")
    readonly_fields = fields

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="at")
    def when(self, entry: AuditEntry) -> SafeString | str:
        return ago(entry.at)

    @admin.display(description="at")
    def exactly(self, entry: AuditEntry) -> str:
        return f"{exact(entry.at)} ({age(entry.at)})"

    @admin.display(description="action")
    def what(self, entry: AuditEntry) -> SafeString:
        return chip(entry.get_action_display(), _KINDS.get(entry.action, "idle"))

    @admin.display(description="subscription or key")
    def about(self, entry: AuditEntry) -> SafeString | str:
        if entry.subscription_id is None or entry.action == "deleted":
            return entry.subject or "–"
        page = reverse("admin:subscriptions_subscription_change", args=[entry.subscription_id])
        return format_html('<a href="{}">{}</a>', page, entry.subject)

    @admin.display(description="by")
    def who(self, entry: AuditEntry) -> str:
        return entry.who

    @admin.display(description="why")
    def how(self, entry: AuditEntry) -> SafeString | str:
        return short(entry.story, 70)

    @admin.display(description="told")
    def told_now(self, entry: AuditEntry) -> SafeString | str:
        if entry.notice_error:
            return chip("Not told", "bad", entry.notice_error)
        if entry.notify_at is not None:
            return chip("Being told", "busy")
        return ", ".join(entry.told) or "–"

    @admin.display(description="details")
    def details(self, entry: AuditEntry) -> SafeString | str:
        if not entry.detail:
            return "–"
        text = json.dumps(entry.detail, indent=2, ensure_ascii=False)
        return format_html('<pre class="body" tabindex="0">{}</pre>', text)

    @admin.display(description="notice")
    def notice(self, entry: AuditEntry) -> str:
        if not entry.notice_attempts and entry.notify_at is None:
            return "Nothing is told of this."
        told = f"Told by {', '.join(entry.told)}. " if entry.told else "Not told yet. "
        if entry.notice_error:
            told += f"Tried {entry.notice_attempts} times: {entry.notice_error}"
        return told
