"""The audit in the admin: who did what, and what was told of it. Nothing here can be changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries.admin.readonly import (
    BY_SINCE,
    BY_UNTIL,
    ReadOnlyAdmin,
    by,
    moment,
    offered,
    subscription_of,
)
from deliveries.keeping.keyset import Search
from subscriptions.admin.display import ago, chip, short
from subscriptions.models import AuditEntry
from subscriptions.times import age, exact

_KINDS = {
    **dict.fromkeys(("tripped", "still_tripped", "fuse_blown", "deleted"), "bad"),
    **dict.fromkeys(("degraded", "held_expiring", "discarded"), "busy"),
    **dict.fromkeys(("recovered", "reset", "resumed", "fuse_reset", "created"), "good"),
}


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnlyAdmin):
    list_display = ("when", "what", "about", "who", "how", "told_now")
    list_display_links = ("when",)
    list_filter = (
        offered("action", AuditEntry.Action.choices),
        offered("via", AuditEntry.Via.choices),
        BY_SINCE,
        BY_UNTIL,
        by("subscription"),
    )
    ordering = ("-at", "-id")
    page_template = "admin/deliveries/audit_entry.html"

    def search(self, values: Mapping[str, str], term: str) -> tuple[Search[Any], list[str]]:
        """Each filter has an index, in the order of the list; it is entered by the narrowest."""
        asked: dict[str, Any] = {}
        if (subscription := subscription_of(values)) is not None:
            asked["subscription_id"] = subscription
        for name in ("action", "via"):
            if f"{name}__exact" in values:
                asked[name] = values[f"{name}__exact"]
        rows = AuditEntry.objects.all()
        if since := moment(values, "since"):
            rows = rows.filter(at__gte=since)
        if until := moment(values, "until"):
            rows = rows.filter(at__lt=until)
        for name in list(asked)[:1]:
            rows = rows.filter(**{name: asked.pop(name)})
        notes = []
        if subscription is not None:
            newest = rows.order_by("-at", "-id").first()
            notes = [f"Of {newest.subject if newest else 'an unknown subscription'}."]
        return Search(rows, Q(**asked), ("-at", "-id")), notes

    def details(self, request: HttpRequest, entry: AuditEntry) -> dict[str, Any]:
        return {
            "facts": [
                ("At", f"{exact(entry.at)} ({age(entry.at)})"),
                ("Action", self.what(entry)),
                ("Subscription or key", self.about(entry)),
                ("By", entry.who),
                ("Notice", self.notice(entry)),
            ],
            "story": entry.story,
            "detail": json.dumps(entry.detail, indent=2, ensure_ascii=False)
            if entry.detail
            else "",
        }

    @admin.display(description="at")
    def when(self, entry: AuditEntry) -> SafeString | str:
        return ago(entry.at)

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

    def notice(self, entry: AuditEntry) -> str:
        if not entry.notice_attempts and entry.notify_at is None:
            return "Nothing is told of this."
        told = f"Told by {', '.join(entry.told)}. " if entry.told else "Not told yet. "
        if entry.notice_error:
            told += f"Tried {entry.notice_attempts} times: {entry.notice_error}"
        return told
