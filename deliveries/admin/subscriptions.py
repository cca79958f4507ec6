"""What the admin of subscriptions shows and does with deliveries."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import ngettext

from deliveries.admin.acts import ACTS, Act, many
from deliveries.admin.pagination import EstimatingPaginator
from deliveries.admin.readonly import IndexedChangeList
from deliveries.keeping.backlog import (
    Backlog,
    Backoff,
    backlogs,
    backlogs_up_to,
    backoff,
    being_discarded,
    fuse_blown_at,
    is_sending,
)
from deliveries.keeping.recent import recent
from deliveries.models import Delivery, Event, Lane
from deliveries.monitoring.rollups import hourly
from deliveries.sending.send_test import send_tests
from subscriptions.admin.display import (
    ago,
    chip,
    explained,
    link,
    page_of,
    short,
    sparkline,
    state_explanation,
    state_words,
)
from subscriptions.admin.subscriptions import SubscriptionAdmin
from subscriptions.circuit import fuse
from subscriptions.models import AuditEntry, Subscription
from subscriptions.times import exact

# The page waits for the slowest receiver, and shows a message for each.
MAX_TESTS = 50
# The page of an act names each one; Django refuses a form of more than 1,000 fields.
MAX_CHOSEN = 950
# What waits is counted up to here in the list, and on the page of one; an act counts it all.
COUNTED, COUNTED_OF_ONE = 10_000, 100_000
# Deliveries, and entries of the audit, on a subscription's page.
LATEST = 8

STATUS_KINDS = {
    "pending": "busy",
    "held": "idle",
    "succeeded": "good",
    "failed": "bad",
    "discarded": "idle",
}


class BacklogChangeList(IndexedChangeList):
    """Looks up the backlogs and the lanes of all subscriptions of the page, in one query each."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        page: list[Subscription] = list(self.result_list)
        waiting = backlogs_up_to(COUNTED, (subscription.pk for subscription in page))
        lanes = Lane.objects.in_bulk([subscription.pk for subscription in page])
        rates = hourly(subscription.pk for subscription in page)
        for subscription in page:
            subscription.rates = rates.get(subscription.pk, [])  # type: ignore[attr-defined]
            subscription.backlog = waiting.get(subscription.pk, Backlog())  # type: ignore[attr-defined]
            subscription.known_lane = lanes.get(subscription.pk)  # type: ignore[attr-defined]
        self.result_list = page


class SubscriptionWithDeliveriesAdmin(SubscriptionAdmin):
    list_display = (
        *SubscriptionAdmin.list_display[:2],
        "success",
        "last_delivery",
        "waiting",
        *SubscriptionAdmin.list_display[2:],
    )
    paginator = EstimatingPaginator
    show_full_result_count = False
    how_it_goes = (*SubscriptionAdmin.how_it_goes, "sending_now", "waiting_now")
    readonly_fields: ClassVar[tuple[str, ...]] = (
        *SubscriptionAdmin.readonly_fields,
        "sending_now",
        "waiting_now",
    )
    actions = (
        "reset_circuit", "pause", "resume", "replay", "send_test", *SubscriptionAdmin.actions
    )  # fmt: skip
    change_form_template = "admin/deliveries/subscription_change_form.html"

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return BacklogChangeList

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        banner = {
            "fuse_blown_at": fuse_blown_at(),
            "may_reset_fuse": request.user.has_perm("subscriptions.reset_fuse"),
        }
        return super().changelist_view(request, {**(extra_context or {}), **banner})

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        subscription = self.get_object(request, object_id)
        story = {} if subscription is None else self._story(request, subscription)
        return super().change_view(request, object_id, form_url, {**(extra_context or {}), **story})

    def _story(self, request: HttpRequest, subscription: Subscription) -> dict[str, Any]:
        """What is shown before the form: the state, what to do, numbers, what happened last."""
        acts = [
            (act, f"admin:subscriptions_subscription_{act.name}")
            for act in ACTS.values()
            if self.may(request, act.permission) and subscription.state in act.states
        ]
        words, kind = state_words(subscription)
        newest = recent(subscription.pk)
        finished = newest.succeeded + newest.failed + newest.discarded
        deliveries: list[Delivery] = []
        if request.user.has_perm("deliveries.view_delivery"):
            deliveries = list(
                Delivery.objects.filter(subscription=subscription, id__gt=0).order_by("-id")[
                    :LATEST
                ]
            )
        events = dict(
            Event.objects.filter(pk__in=[one.event_id for one in deliveries]).values_list(
                "pk", "topic"
            )
        )
        entries = []
        if request.user.has_perm("subscriptions.view_auditentry"):
            entries = [
                (ago(entry.at), entry.get_action_display(), entry.who, short(entry.story, 100))
                for entry in AuditEntry.objects.of(subscription.pk)[:LATEST]
            ]
        return {
            "acts": acts,
            "state_kind": kind,
            "state_words": words,
            "state_explanation": state_explanation(subscription),
            "sending": self.sending_now(subscription),
            "waiting": self.waiting_now(subscription),
            "spark": sparkline(hourly([subscription.pk])[subscription.pk]),
            "newest": newest,
            "sample": many(newest.pending + newest.held + finished, "delivery", "deliveries"),
            "latest": [
                (
                    ago(one.created_at),
                    link(events.get(one.event_id, "–"), page_of(Delivery), one.pk),
                    chip(one.status, STATUS_KINDS[one.status]),
                    one.attempt_count,
                    short(one.last_error, 60),
                )
                for one in deliveries
            ],
            "entries": entries,
        }

    @admin.display(description="state")
    def state_now(self, subscription: Subscription) -> SafeString:
        waits = _backoff(subscription)
        if waits is None or subscription.state != "active":
            return super().state_now(subscription)
        words = state_words(subscription)[0] if subscription.consecutive_failures else "BACKING OFF"
        return explained(words, "warn", capfirst(str(waits)))

    @admin.display(description="last 24 h")
    def success(self, subscription: Subscription) -> SafeString | str:
        return sparkline(subscription.rates)  # type: ignore[attr-defined]

    @admin.display(description="last delivery")
    def last_delivery(self, subscription: Subscription) -> SafeString | str:
        moments = (subscription.last_success_at, subscription.last_failure_at)
        return ago(max((at for at in moments if at), default=None))

    @admin.display(description="sending")
    def sending_now(self, subscription: Subscription) -> str:
        lane = _lane(subscription)
        if waits := _backoff(subscription):
            return capfirst(str(waits))
        if lane is not None and lane.lease_until is not None and is_sending(lane):
            return f"A worker is sending; its lease ends at {exact(lane.lease_until)}."
        return "Nothing just now."

    @admin.display(description="pending / held")
    def waiting(self, subscription: Subscription) -> SafeString:
        return _waiting(subscription, subscription.backlog, COUNTED)  # type: ignore[attr-defined]

    @admin.display(description="pending / held")
    def waiting_now(self, subscription: Subscription) -> SafeString:
        known = vars(subscription)
        if "backlog" not in known:
            found = backlogs_up_to(COUNTED_OF_ONE, [subscription.pk])
            known["backlog"] = found.get(subscription.pk, Backlog())
        return _waiting(subscription, known["backlog"], COUNTED_OF_ONE)

    # What cannot be undone says how many deliveries it ends, and asks.

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        to_delete, counts, perms_needed, protected = super().get_deleted_objects(objs, request)
        backlog = backlogs([subscription.pk for subscription in objs]).values()
        ended = sum(subscription.pending + subscription.held for subscription in backlog)
        what = "pending and held deliveries, which are discarded (and stay listed)"
        return to_delete, {**counts, what: f"{ended:,}"}, perms_needed, protected

    # What an operator does. A button of a page and an action of the list lead to the same page.

    def has_reset_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "reset")

    def has_pause_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "pause")

    def has_test_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "test")

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return self.may(request, "replay")

    @admin.action(description="Reset the circuit", permissions=["reset"])
    def reset_circuit(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._act(request, ACTS["reset"], chosen, "reset_circuit")

    @admin.action(description="Pause", permissions=["pause"])
    def pause(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._act(request, ACTS["pause"], chosen, "pause")

    @admin.action(description="Resume", permissions=["pause"])
    def resume(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._act(request, ACTS["resume"], chosen, "resume")

    @admin.action(description="Replay", permissions=["replay"])
    def replay(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._act(request, ACTS["replay"], chosen, "replay")

    @admin.action(description="Send a test event", permissions=["test"])
    def send_test(self, request: HttpRequest, chosen: QuerySet[Subscription]) -> HttpResponse:
        return self._act(request, ACTS["send_test"], chosen, "send_test")

    def get_urls(self) -> list[URLPattern]:
        return [
            path(
                "reset-fuse/",
                self.admin_site.admin_view(self.reset_fuse_view),
                name="subscriptions_subscription_reset_fuse",
            ),
            *(
                path(
                    f"<path:object_id>/{act.name.replace('_', '-')}/",
                    self.admin_site.admin_view(partial(self.act_view, act)),
                    name=f"subscriptions_subscription_{act.name}",
                )
                for act in ACTS.values()
            ),
            *super().get_urls(),
        ]

    def act_view(self, act: Act, request: HttpRequest, object_id: str) -> HttpResponse:
        self.require(request, act.permission)
        subscription = self.get_object(request, object_id)
        if subscription is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        return self._act(request, act, Subscription.objects.filter(pk=subscription.pk), "")

    def _act(
        self, request: HttpRequest, act: Act, chosen: QuerySet[Subscription], action: str
    ) -> HttpResponse:
        """Ask, or do what was confirmed. `action`: the list's, that asks; none: one's own page."""
        everything = list(chosen[: MAX_CHOSEN + 1])
        if not everything:
            return self.gone(request)
        back = (
            request.get_full_path()  # the list, filtered as it was
            if action
            else reverse("admin:subscriptions_subscription_change", args=[everything[0].pk])
        )
        limit = MAX_TESTS if act.name == "send_test" else MAX_CHOSEN
        if len(everything) > limit:
            refusal = f"Choose at most {limit:,} subscriptions at once; nothing was done."
            self.message_user(request, refusal, messages.ERROR)
            return redirect(back)
        confirmed = request.method == "POST" and "confirmed" in request.POST
        counted = request.method == "POST" and "count" in request.POST
        form = act.form(request.POST if confirmed or counted else None)
        valid = form.is_valid()
        values = form.cleaned_data if valid else {}
        # What is confirmed was counted already; each part of a large replay would count it again.
        forecast = act.forecast(everything, {} if confirmed else values)
        if confirmed and valid:
            if act.name == "send_test":
                return self._show_answers(request, everything, back)
            done = act.do(everything, values)
            if done.going_on:
                return self.page(
                    request,
                    "admin/deliveries/going_on.html",
                    act.title,
                    done=done,
                    form=form,
                    chosen=everything,
                    action=action,
                    back=back,
                    action_checkbox_name=ACTION_CHECKBOX_NAME,
                )
            level = messages.SUCCESS if done.changed else messages.WARNING
            self.message_user(request, done.message, level)
            if forecast.left and done.changed:
                left = f"{forecast.left:,} of those chosen {ngettext('was', 'were', forecast.left)}"
                self.message_user(request, f"{left} {forecast.left_because}.", messages.WARNING)
            return redirect(back)
        return self.page(
            request,
            "admin/deliveries/act.html",
            f"{act.title}: {everything[0]}" if not action else act.title,
            act=act,
            form=form,
            forecast=forecast,
            asks=act.form_first and not valid,
            nothing=not forecast.rows and not act.form_first,
            chosen=everything,
            action=action,
            back=back,
            action_checkbox_name=ACTION_CHECKBOX_NAME,
        )

    def _show_answers(
        self, request: HttpRequest, subscriptions: list[Subscription], back: str
    ) -> HttpResponse:
        answers = list(zip(subscriptions, send_tests(subscriptions), strict=True))
        return self.page(
            request,
            "admin/deliveries/tested.html",
            "Test events",
            answers=answers,
            back=back,
            may_reset=self.may(request, "reset"),
        )

    def reset_fuse_view(self, request: HttpRequest) -> HttpResponse:
        if not request.user.has_perm("subscriptions.reset_fuse"):
            raise PermissionDenied
        if request.method == "POST":
            fuse.reset()
            self.message_user(request, "The fuse was reset: circuits trip again.", messages.SUCCESS)
            return redirect("admin:subscriptions_subscription_changelist")
        return self.page(
            request,
            "admin/deliveries/reset_fuse.html",
            "Reset the fuse",
            blown_at=fuse_blown_at(),
        )


def _lane(subscription: Subscription) -> Lane | None:
    """The lane, looked up once: a page asks for each of its fields several times."""
    known = vars(subscription)
    if "known_lane" not in known:
        known["known_lane"] = Lane.objects.filter(pk=subscription.pk).first()
    lane: Lane | None = known["known_lane"]
    return lane


def _backoff(subscription: Subscription) -> Backoff | None:
    """Nothing backs off on a paused subscription: nothing is sent to it anyway."""
    return (
        None
        if subscription.state == "paused"
        else backoff(_lane(subscription), subscription.last_error)
    )


def _waiting(subscription: Subscription, backlog: Backlog, at_most: int) -> SafeString:
    counts = [_count(subscription, name, backlog, at_most) for name in ("pending", "held")]
    if left := being_discarded(_lane(subscription)):
        return format_html("<span>{} / {} (discarding {})</span>", *counts, f"{left:,}")
    return format_html("<span>{} / {}</span>", *counts)


def _count(
    subscription: Subscription, status: str, backlog: Backlog, at_most: int
) -> SafeString | str:
    count: int = getattr(backlog, status)
    if not count:
        return "0"
    return link(
        f"{count:,}{'+' if count == at_most else ''}",
        "deliveries_delivery_changelist",
        subscription=subscription.pk,
        status__exact=status,
    )
