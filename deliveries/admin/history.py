"""Deliveries and attempts in Django's admin, to be read and replayed.

The tables hold millions of rows, so nothing here counts them all, lists the values of a column,
or joins: related rows of a page are fetched by their ids, and may be gone.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.shortcuts import redirect
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import ngettext

from deliveries.admin.acts import MAX_REPLAYED
from deliveries.admin.readonly import (
    ChosenDelivery,
    ChosenEvent,
    ChosenSubscription,
    IndexedChangeList,
    OutcomeFilter,
    ReadOnlyAdmin,
)
from deliveries.admin.subscriptions import SubscriptionWithDeliveriesAdmin
from deliveries.keeping.backlog import backoff
from deliveries.keeping.replay import BATCH, FINISHED, Replayed, replay
from deliveries.models import Attempt, Delivery, Event, Lane
from subscriptions.admin.display import ago, chip, link, page_of, short
from subscriptions.admin.tenants import ChosenTenant, tenant_link
from subscriptions.models import Subscription

MAX_ATTEMPTS_SHOWN = 100

_STATUS_KINDS = {
    Delivery.Status.PENDING: "busy",
    Delivery.Status.HELD: "idle",
    Delivery.Status.SUCCEEDED: "good",
    Delivery.Status.FAILED: "bad",
    Delivery.Status.DISCARDED: "idle",
}

_ORDER_OF_OPEN = {
    "pending": ("subscription_id", "next_attempt_at", "id"),
    "held": ("subscription_id", "id"),
}

admin.site.unregister(Subscription)
admin.site.register(Subscription, SubscriptionWithDeliveriesAdmin)


class DeliveryChangeList(IndexedChangeList):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Delivery] = list(self.result_list)
        topics = dict(
            Event.objects.filter(pk__in={delivery.event_id for delivery in page}).values_list(
                "pk", "topic"
            )
        )
        ids = {delivery.subscription_id for delivery in page}
        subscriptions = Subscription.objects.in_bulk(ids)
        lanes = Lane.objects.in_bulk(ids)
        for delivery in page:
            delivery.topic = topics.get(delivery.event_id, "–")  # type: ignore[attr-defined]
            delivery.known = (  # type: ignore[attr-defined]
                subscriptions.get(delivery.subscription_id),
                lanes.get(delivery.subscription_id),
            )
        self.result_list = page


class TenantOfDeliveries(ChosenTenant):
    """The deliveries to subscriptions of one tenant."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> QuerySet[Delivery]:
        if self.value() and request.GET.get("status__exact") in _ORDER_OF_OPEN:
            # By the indexes of open deliveries: these have none by tenant.
            chosen = Subscription.objects.filter(tenant=self.value()).order_by()
            return queryset.filter(subscription__in=chosen.values("pk"))
        return super().queryset(request, queryset)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "status_now",
        "topic",
        "receiver",
        "whose",
        "attempts_link",
        "due",
        "error",
        "created",
    )
    list_filter = ("status", TenantOfDeliveries, ChosenSubscription, ChosenEvent)
    search_fields = ("id",)
    search_help_text = "The id of a delivery or of an event, in full"
    actions = ("replay",)
    fields = (
        "id",
        "status_now",
        "event_link",
        "receiver",
        "whose",
        "created_at",
        "due",
        "next_attempt_at",
        "finished_at",
        "attempt_count",
        "retries_used",
        "last_error",
        "attempts_made",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return DeliveryChangeList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        # Open deliveries are listed in the order of their indexes, the next due first: another
        # index, for the newest first, would cost every delivery.
        return _ORDER_OF_OPEN.get(request.GET.get("status__exact", ""), ("-id",))

    def get_sortable_by(self, request: HttpRequest) -> tuple[str, ...]:
        return () if request.GET.get("status__exact") in _ORDER_OF_OPEN else ("id", "created")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Delivery], search_term: str
    ) -> tuple[QuerySet[Delivery], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        condition = Q(event_id=term)
        if term.isascii() and term.isdigit() and int(term) < 2**63:
            condition |= Q(pk=int(term))
        return queryset.filter(condition), False

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("deliveries.resend_delivery"))

    def get_urls(self) -> list[URLPattern]:
        return [
            path(
                "<int:delivery_id>/replay/",
                self.admin_site.admin_view(self.replay_view),
                name="deliveries_delivery_replay",
            ),
            *super().get_urls(),
        ]

    def replay_view(self, request: HttpRequest, delivery_id: int) -> HttpResponse:
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not self.has_replay_permission(request):
            raise PermissionDenied
        if not Delivery.objects.filter(pk=delivery_id).exists():
            raise Http404(f"There is no delivery {str(delivery_id)[:30]}.")
        self._replay(request, [delivery_id])
        return redirect("admin:deliveries_delivery_change", delivery_id)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        delivery = self.get_object(request, object_id)
        replayable = delivery is not None and delivery.status in FINISHED
        context = {"may_replay": replayable and self.has_replay_permission(request)}
        return super().change_view(
            request, object_id, form_url, {**(extra_context or {}), **context}
        )

    @admin.action(description="Send again (replay)", permissions=["replay"])
    def replay(self, request: HttpRequest, chosen: QuerySet[Delivery]) -> None:
        ids = sorted(chosen.order_by("id").values_list("pk", flat=True)[: MAX_REPLAYED + 1])
        if len(ids) > MAX_REPLAYED:
            self.message_user(
                request,
                f"More than {MAX_REPLAYED:,} deliveries are chosen; nothing was done. "
                "`manage.py replay --subscription NAME` replays any number.",
                messages.ERROR,
            )
            return
        self._replay(request, ids)

    def _replay(self, request: HttpRequest, ids: list[int]) -> None:
        replayed, changed = Replayed(), 0
        for start in range(0, len(ids), BATCH):
            with transaction.atomic():
                batch, batch_ids = replay(ids[start : start + BATCH])
                LogEntry.objects.log_actions(
                    user_id=request.user.pk,  # type: ignore[arg-type]  # a user is logged in
                    queryset=Delivery.objects.filter(pk__in=batch_ids),
                    action_flag=CHANGE,
                    change_message="Sent again (replay).",
                )
            changed += len(batch_ids)
            replayed = Replayed(replayed.pending + batch.pending, replayed.held + batch.held)
        if replayed.pending:
            text = ngettext(
                "%d delivery will be sent again now.",
                "%d deliveries will be sent again now.",
                replayed.pending,
            )
            self.message_user(request, text % replayed.pending, messages.SUCCESS)
        if replayed.held:
            text = ngettext(
                "%d delivery is held until its subscription is active again.",
                "%d deliveries are held until their subscriptions are active again.",
                replayed.held,
            )
            self.message_user(request, text % replayed.held, messages.WARNING)
        if left := len(ids) - changed:
            text = ngettext(
                "%d delivery was left as it is: it is open already, its subscription was "
                "deleted, or is not for all tenants any more.",
                "%d deliveries were left as they are: they are open already, their "
                "subscriptions were deleted, or are not for all tenants any more.",
                left,
            )
            self.message_user(request, text % left, messages.WARNING)

    @admin.display(description="status")
    def status_now(self, delivery: Delivery) -> SafeString:
        status = Delivery.Status(delivery.status)
        return chip(str(status.label), _STATUS_KINDS[status], delivery.last_error)

    @admin.display(description="topic")
    def topic(self, delivery: Delivery) -> SafeString:
        topic: str = delivery.topic  # type: ignore[attr-defined]
        return link(topic, page_of(Event), delivery.event_id, title=f"Event {delivery.event_id}")

    @admin.display(description="subscription")
    def receiver(self, delivery: Delivery) -> SafeString | str:
        subscription, _ = _known(delivery)
        if subscription is None:
            return "(deleted)"
        return link(subscription.name, page_of(Subscription), subscription.pk)

    @admin.display(description="tenant")
    def whose(self, delivery: Delivery) -> SafeString | str:
        return tenant_link(delivery.tenant, "deliveries_delivery_changelist")

    @admin.display(description="event")
    def event_link(self, delivery: Delivery) -> SafeString:
        return link(delivery.event_id, page_of(Event), delivery.event_id)

    @admin.display(description="attempts")
    def attempts_link(self, delivery: Delivery) -> SafeString | int:
        if not delivery.attempt_count:
            return 0
        return link(delivery.attempt_count, "deliveries_attempt_changelist", delivery=delivery.pk)

    @admin.display(description="next attempt")
    def due(self, delivery: Delivery) -> SafeString | str:
        at = delivery.next_attempt_at
        if at is None:
            return "–"
        subscription, lane = _known(delivery)
        if subscription is None:
            return "none: its subscription was deleted"
        if not subscription.enabled:
            return f"none: its subscription is {subscription.state}"
        waits = backoff(lane, subscription.last_error)
        if waits is not None and waits.until > at:
            return short(str(waits), 70)
        seconds = (at - timezone.now()).total_seconds()
        if seconds <= 0:
            return "now"
        return f"in {seconds:.0f} s" if seconds < 120 else f"in {seconds / 60:.0f} min"

    @admin.display(description="last error")
    def error(self, delivery: Delivery) -> SafeString | str:
        return short(delivery.last_error, 50)

    @admin.display(description="created", ordering="id")
    def created(self, delivery: Delivery) -> SafeString | str:
        return ago(delivery.created_at)

    @admin.display(description="attempts")
    def attempts_made(self, delivery: Delivery) -> SafeString | str:
        attempts = delivery.attempts.order_by("-number")[:MAX_ATTEMPTS_SHOWN]
        rows = format_html_join(
            "",
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{} ms</td><td>{}</td></tr>",
            (
                (
                    link(attempt.number, page_of(Attempt), attempt.pk),
                    _outcome_chip(attempt),
                    f"{attempt.started_at:%Y-%m-%d %H:%M:%S} UTC",
                    f"{attempt.duration_ms:,}",
                    short(attempt.error or attempt.response_body, 80),
                )
                for attempt in attempts
            ),
        )
        if not rows:
            return "None yet."
        return format_html(
            "<table><thead><tr><th>No.</th><th>Outcome</th><th>Started</th><th>Took</th>"
            "<th>Answer or error</th></tr></thead><tbody>{}</tbody></table>",
            rows,
        )


@admin.register(Attempt)
class AttemptAdmin(ReadOnlyAdmin):
    list_display = (
        "id",
        "outcome_now",
        "delivery_link",
        "number",
        "what",
        "duration",
        "remote_address",
        "started",
    )
    sortable_by = ("id", "started")
    list_filter = (OutcomeFilter, ChosenDelivery)
    search_fields = ("id",)
    search_help_text = "The id of a delivery or of an event, in full"
    fields = (
        "id",
        "outcome_now",
        "delivery_link",
        "number",
        "status_code",
        "outcome",
        "error",
        "answer",
        "remote_address",
        "started_at",
        "duration",
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Attempt], search_term: str
    ) -> tuple[QuerySet[Attempt], bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        ids = set(Delivery.objects.filter(event_id=term).values_list("pk", flat=True))
        if term.isascii() and term.isdigit() and int(term) < 2**63:
            ids.add(int(term))
        return queryset.filter(delivery_id__in=ids), False

    @admin.display(description="outcome")
    def outcome_now(self, attempt: Attempt) -> SafeString:
        return _outcome_chip(attempt)

    @admin.display(description="delivery")
    def delivery_link(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery_id, page_of(Delivery), attempt.delivery_id)

    @admin.display(description="answer or error")
    def what(self, attempt: Attempt) -> SafeString | str:
        return short(attempt.error or attempt.response_body)

    @admin.display(description="start of the answer")
    def answer(self, attempt: Attempt) -> SafeString | str:
        if not attempt.response_body:
            return "–"
        return format_html('<pre class="body">{}</pre>', attempt.response_body)

    @admin.display(description="took")
    def duration(self, attempt: Attempt) -> str:
        return f"{attempt.duration_ms:,} ms"

    @admin.display(description="started", ordering="id")
    def started(self, attempt: Attempt) -> SafeString | str:
        return ago(attempt.started_at)


def _known(delivery: Delivery) -> tuple[Subscription | None, Lane | None]:
    """The subscription and its lane, as the list has looked them up, or looked up now."""
    if "known" in vars(delivery):
        known: tuple[Subscription | None, Lane | None] = vars(delivery)["known"]
        return known
    return (
        Subscription.objects.filter(pk=delivery.subscription_id).first(),
        Lane.objects.filter(pk=delivery.subscription_id).first(),
    )


def _outcome_chip(attempt: Attempt) -> SafeString:
    if attempt.outcome == "success":
        return chip(str(attempt.status_code), "good")
    text = attempt.outcome if attempt.status_code is None else str(attempt.status_code)
    return chip(text, "idle" if attempt.outcome == "unknown" else "bad", attempt.error)
