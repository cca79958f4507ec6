"""Events, deliveries and attempts in Django's admin, to be read and replayed.

The tables hold millions of rows, so nothing here counts them all, lists the values of a column,
or joins: related rows of a page are fetched by their ids, and may be gone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import models
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from deliveries.backlog import Backlog, backlogs
from deliveries.models import Attempt, Delivery, Event
from deliveries.pagination import EstimatingPaginator
from deliveries.replaying import replay_many
from deliveries.send_test import send_tests
from subscriptions.admin import SubscriptionAdmin
from subscriptions.display import ago, chip, link, page_of, short
from subscriptions.models import Subscription

MOST_BODY_CHARACTERS = 100_000
# Test events wait for the slowest receiver; more at once would keep the page waiting.
MOST_TESTS = 50

_STATUS_KINDS = {
    "pending": "busy",
    "held": "idle",
    "succeeded": "good",
    "failed": "bad",
    "discarded": "bad",
}


def status_chip(delivery: Delivery) -> SafeString:
    return chip(
        delivery.get_status_display(), _STATUS_KINDS[delivery.status], delivery.last_error
    )


def outcome_chip(attempt: Attempt) -> SafeString:
    if attempt.outcome == "success":
        return chip(str(attempt.status_code), "good")
    if attempt.status_code is not None:
        return chip(str(attempt.status_code), "bad")
    return chip(attempt.outcome, "idle" if attempt.outcome == "unknown" else "bad")


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not at run time
    """Rows that only the sender writes."""

    actions_on_bottom = False
    list_per_page = 50
    ordering: Sequence[str] = ("-id",)
    paginator = EstimatingPaginator
    show_facets = admin.ShowFacets.NEVER
    show_full_result_count = False

    class Media:
        css: ClassVar = {"all": ["subscriptions/admin.css"]}

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class ChosenFilter(admin.SimpleListFilter):
    """Shows which related row the list is narrowed to, and the way back to all."""

    parameter_name = "subscription"
    title = "subscription"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = request.GET.get(self.parameter_name, "")
        if not chosen:
            return []
        try:
            name = Subscription.objects.values_list("name", flat=True).get(pk=chosen)
        except (ValueError, models.ObjectDoesNotExist, _ValidationError):
            name = "(deleted)"
        return [(chosen, name)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        try:
            return queryset.filter(subscription_id=value)
        except (ValueError, _ValidationError):
            return queryset.none()
