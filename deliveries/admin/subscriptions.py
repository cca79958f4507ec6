"""What the admin of subscriptions shows and does with deliveries."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils.html import format_html
from django.utils.safestring import SafeString

from deliveries.keeping.backlog import Backlog, backlogs
from deliveries.sending.send_test import send_tests
from subscriptions.admin.display import link
from subscriptions.admin.subscriptions import SubscriptionAdmin
from subscriptions.models import Subscription

# The page waits for the slowest receiver, and shows a message for each.
MOST_TESTS = 50


class BacklogChangeList(ChangeList):
    """Counts what is waiting for all subscriptions of the page, in one query."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Subscription] = list(self.result_list)
        waiting = backlogs(one.pk for one in page)
        for one in page:
            one.backlog = waiting.get(one.pk, Backlog())  # type: ignore[attr-defined]
        self.result_list = page


class SubscriptionWithDeliveriesAdmin(SubscriptionAdmin):
    list_display = (*SubscriptionAdmin.list_display[:-1], "waiting", "error")
    actions = (*SubscriptionAdmin.actions, "send_test")
    change_form_template = "admin/deliveries/subscription_change_form.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BacklogChangeList

    @admin.display(description="pending / held")
    def waiting(self, one: Subscription) -> SafeString:
        return format_html("{} / {}", _count(one, "pending"), _count(one, "held"))

    def get_urls(self) -> list[URLPattern]:
        return [
            path(
                "<path:object_id>/send-test/",
                self.admin_site.admin_view(self.send_test_view),
                name="subscriptions_subscription_send_test",
            ),
            *super().get_urls(),
        ]

    def send_test_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        subscription = self.get_object(request, object_id)
        if subscription is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        self.require_change(request, subscription)
        self._test(request, [subscription])
        return redirect("admin:subscriptions_subscription_change", subscription.pk)

    @admin.action(description="Send a test event", permissions=["change"])
    def send_test(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> None:
        subscriptions = list(chosen[: MOST_TESTS + 1])
        if len(subscriptions) > MOST_TESTS:
            self.message_user(
                request,
                f"Choose at most {MOST_TESTS} subscriptions for a test; nothing was sent.",
                messages.ERROR,
            )
            return
        self._test(request, subscriptions)

    def _test(self, request: HttpRequest, subscriptions: list[Subscription]) -> None:
        for one, tested in zip(subscriptions, send_tests(subscriptions), strict=True):
            level = messages.SUCCESS if tested.succeeded else messages.ERROR
            self.message_user(request, f"Test event to {one}: {tested}", level)


def _count(one: Subscription, status: str) -> SafeString | str:
    count: int = getattr(one.backlog, status)  # type: ignore[attr-defined]
    if not count:
        return "0"
    return link(
        f"{count:,}",
        "deliveries_delivery_changelist",
        subscription=one.pk,
        status__exact=status,
    )
