"""What the admin of subscriptions shows and does with deliveries."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import ngettext

from deliveries.admin.pagination import EstimatingPaginator
from deliveries.admin.readonly import IndexedChangeList
from deliveries.keeping.backlog import (
    Backlog,
    Backoff,
    backlogs,
    backoff,
    being_discarded,
    fuse_blown_at,
    is_sending,
)
from deliveries.models import Lane
from deliveries.sending.send_test import send_tests
from subscriptions.admin.display import chip, link
from subscriptions.admin.subscriptions import SubscriptionAdmin
from subscriptions.models import Subscription

# The page waits for the slowest receiver, and shows a message for each.
MAX_TESTS = 50


class BacklogChangeList(IndexedChangeList):
    """Looks up the backlogs and the lanes of all subscriptions of the page, in one query each."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Subscription] = list(self.result_list)
        waiting = backlogs(subscription.pk for subscription in page)
        lanes = Lane.objects.in_bulk([subscription.pk for subscription in page])
        for subscription in page:
            subscription.backlog = waiting.get(subscription.pk, Backlog())  # type: ignore[attr-defined]
            subscription.known_lane = lanes.get(subscription.pk)  # type: ignore[attr-defined]
        self.result_list = page


class SubscriptionWithDeliveriesAdmin(SubscriptionAdmin):
    list_display = (*SubscriptionAdmin.list_display[:-1], "waiting", "error")
    paginator = EstimatingPaginator
    show_full_result_count = False
    how_it_goes = (*SubscriptionAdmin.how_it_goes, "sending_now", "waiting_now")
    readonly_fields: ClassVar[tuple[str, ...]] = (
        *SubscriptionAdmin.readonly_fields,
        "sending_now",
        "waiting_now",
    )
    actions = (*SubscriptionAdmin.actions, "reset_circuit_and_discard", "send_test")
    change_form_template = "admin/deliveries/subscription_change_form.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BacklogChangeList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        blown_at = fuse_blown_at()
        return super().changelist_view(
            request, {**(extra_context or {}), "fuse_blown_at": blown_at}
        )

    @admin.display(description="state")
    def state_now(self, subscription: Subscription) -> SafeString:
        waits = _backoff(subscription)
        if waits is None or subscription.state != "active":
            return super().state_now(subscription)
        return chip(f"Backing off {timezone.localtime(waits.until):%H:%M}", "busy", str(waits))

    @admin.display(description="sending")
    def sending_now(self, subscription: Subscription) -> str:
        lane = _lane(subscription)
        if waits := _backoff(subscription):
            return capfirst(str(waits))
        if lane is not None and is_sending(lane):
            return f"A worker is sending; its lease ends at {lane.lease_until:%H:%M:%S} UTC."
        return "Nothing just now."

    @admin.display(description="pending / held")
    def waiting(self, subscription: Subscription) -> SafeString:
        return _waiting(subscription, subscription.backlog)  # type: ignore[attr-defined]

    @admin.display(description="pending / held")
    def waiting_now(self, subscription: Subscription) -> SafeString:
        return _waiting(subscription, backlogs([subscription.pk]).get(subscription.pk, Backlog()))

    # What cannot be undone says how many deliveries it ends, and asks.

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        to_delete, counts, perms_needed, protected = super().get_deleted_objects(objs, request)
        backlog = backlogs([subscription.pk for subscription in objs]).values()
        ended = sum(subscription.pending + subscription.held for subscription in backlog)
        what = "pending and held deliveries, which are discarded (and stay listed)"
        return to_delete, {**counts, what: f"{ended:,}"}, perms_needed, protected

    @admin.action(description="Reset the circuit, discard what was held", permissions=["change"])
    def reset_circuit_and_discard(
        self, request: HttpRequest, chosen: QuerySet[Subscription]
    ) -> HttpResponse | None:
        everything = list(chosen)
        if "confirmed" in request.POST:
            self.reset_tripped(request, everything, discard_held=True)
            return None
        tripped = [subscription for subscription in everything if subscription.state == "tripped"]
        backlog = backlogs([subscription.pk for subscription in tripped])
        held = {
            subscription.pk: backlog.get(subscription.pk, Backlog()).held
            for subscription in tripped
        }
        total = sum(held.values())
        question = ngettext(
            "%s held delivery will be discarded", "%s held deliveries will be discarded", total
        )
        return TemplateResponse(
            request,
            "admin/deliveries/discard_confirmation.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "title": "Reset and discard?",
                "rows": [(subscription, f"{held[subscription.pk]:,}") for subscription in tripped],
                "question": question % f"{total:,}",
                "unaffected": len(everything) - len(tripped),
                "action_checkbox_name": ACTION_CHECKBOX_NAME,
                "media": self.media,
            },
        )

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
        subscriptions = list(chosen[: MAX_TESTS + 1])
        if len(subscriptions) > MAX_TESTS:
            self.message_user(
                request,
                f"Choose at most {MAX_TESTS} subscriptions for a test; nothing was sent.",
                messages.ERROR,
            )
            return
        self._test(request, subscriptions)

    def _test(self, request: HttpRequest, subscriptions: list[Subscription]) -> None:
        for subscription, tested in zip(subscriptions, send_tests(subscriptions), strict=True):
            level = messages.SUCCESS if tested.succeeded else messages.ERROR
            self.message_user(request, f"Test event to {subscription}: {tested}", level)


def _lane(subscription: Subscription) -> Lane | None:
    """The lane, as the list has looked it up, or looked up now."""
    if "known_lane" in vars(subscription):
        lane: Lane | None = vars(subscription)["known_lane"]
        return lane
    return Lane.objects.filter(pk=subscription.pk).first()


def _backoff(subscription: Subscription) -> Backoff | None:
    """Nothing backs off on a paused subscription: nothing is sent to it anyway."""
    return (
        None
        if subscription.state == "paused"
        else backoff(_lane(subscription), subscription.last_error)
    )


def _waiting(subscription: Subscription, backlog: Backlog) -> SafeString:
    counts = _count(subscription, "pending", backlog), _count(subscription, "held", backlog)
    if left := being_discarded(_lane(subscription)):
        return format_html("{} / {} (discarding {})", *counts, f"{left:,}")
    return format_html("{} / {}", *counts)


def _count(subscription: Subscription, status: str, backlog: Backlog) -> SafeString | str:
    count: int = getattr(backlog, status)
    if not count:
        return "0"
    return link(
        f"{count:,}",
        "deliveries_delivery_changelist",
        subscription=subscription.pk,
        status__exact=status,
    )
