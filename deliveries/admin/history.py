"""Deliveries in Django's admin, to be read, sent again and discarded.

The tables hold millions of rows, so nothing here counts them, lists the values of a column, or
joins: related rows of a page are fetched by their ids, and may be gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from deliveries.admin.acts import MAX_REPLAYED
from deliveries.admin.attempts import MAX_ANSWER, ids_of, outcome_chip
from deliveries.admin.delivery_acts import DELIVERY_ACTS, DeliveryAct
from deliveries.admin.readonly import (
    BY_SINCE,
    BY_UNTIL,
    ByAnswer,
    NothingFound,
    ReadOnlyAdmin,
    answer,
    by,
    moment,
    offered,
    subscription_of,
)
from deliveries.admin.subscriptions import STATUS_KINDS, SubscriptionWithDeliveriesAdmin
from deliveries.keeping.backlog import backoff
from deliveries.keeping.finding import ORDERS_OF_OPEN, WantedDeliveries
from deliveries.keeping.keyset import Search
from deliveries.keeping.story import Act, Situation, Step, story
from deliveries.models import Attempt, Delivery, Event, Lane
from subscriptions.admin.display import ago, chip, link, page_of, short
from subscriptions.admin.tenants import tenant_link
from subscriptions.conf import conf
from subscriptions.models import AuditEntry, Subscription
from subscriptions.times import age, exact, span

# The newest of a delivery's attempts, on its page.
MAX_ATTEMPTS_SHOWN = 100
# Entries of the audit among which a delivery's are looked for.
MAX_ENTRIES = 200

_NOTES = {
    ORDERS_OF_OPEN["pending"]: "By subscription, and in each what is due first.",
    ORDERS_OF_OPEN["held"]: "By subscription, and in each the oldest first.",
    ("-attempt",): "What was attempted last comes first.",
}

admin.site.unregister(Subscription)
admin.site.register(Subscription, SubscriptionWithDeliveriesAdmin)


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
    list_filter = (
        offered("status", Delivery.Status.choices),
        ByAnswer,
        by("subscription"),
        by("topic"),
        BY_SINCE,
        BY_UNTIL,
        by("event"),
        by("tenant"),
    )
    search_fields = ("id",)
    search_help_text = "The id of a delivery or of an event, in full"
    actions = ("resend", "discard")
    page_template = "admin/deliveries/delivery.html"

    def searches(
        self, values: Mapping[str, str], term: str
    ) -> Iterator[tuple[Search[Any], list[str]]]:
        yield from super().searches(values, term)
        if "topic" in values:
            # The topic may have more events, or fewer, than at the page before.
            yield self.search(values, term, by_topic=True)
            yield self.search(values, term, by_topic=False)

    def search(
        self, values: Mapping[str, str], term: str, *, by_topic: bool | None = None
    ) -> tuple[Search[Any], list[str]]:
        status = values.get("status__exact")
        if status is not None and status not in Delivery.Status.values:
            raise NothingFound
        subscription = subscription_of(values)
        key, event = ids_of(term, values.get("event"))
        search = WantedDeliveries(
            status=status,
            subscription=subscription,
            topic=values.get("topic"),
            tenant=values.get("tenant"),
            event=event,
            since=moment(values, "since"),
            until=moment(values, "until"),
            answered=answer(values),
            id=key,
        ).search(by_topic=by_topic)
        notes = [_NOTES[search.by]] if search.by in _NOTES else []
        if subscription is not None:
            notes.insert(0, f"To {_name(subscription)}.")
        return search, notes

    def prepared(self, rows: list[Delivery]) -> list[Delivery]:
        topics = dict(
            Event.objects.filter(pk__in={one.event_id for one in rows}).values_list("pk", "topic")
        )
        ids = {one.subscription_id for one in rows}
        subscriptions, lanes = Subscription.objects.in_bulk(ids), Lane.objects.in_bulk(ids)
        for one in rows:
            one.topic = topics.get(one.event_id, "–")  # type: ignore[attr-defined]
            one.known = (  # type: ignore[attr-defined]
                subscriptions.get(one.subscription_id), lanes.get(one.subscription_id),
            )  # fmt: skip
        return rows

    # The page of one.

    def details(self, request: HttpRequest, delivery: Delivery) -> dict[str, Any]:
        self.prepared([delivery])
        subscription, lane = _known(delivery)
        newest = delivery.attempts.order_by("-number")[:MAX_ATTEMPTS_SHOWN]
        attempts = list(newest)[::-1]
        error = subscription.last_error if subscription else ""
        situation = Situation(
            now=timezone.now(),
            subscription=subscription,
            backoff=backoff(lane, error),
            retries=len(conf().quick_retries) + len(conf().slow_retries),
            hold=timedelta(days=conf().hold_days),
        )
        steps = story(delivery, attempts, self._acts_on(request, delivery), situation)
        return {
            "delivery": delivery,
            "status": self.status_now(delivery),
            "facts": [
                ("Topic", self.topic(delivery)),
                ("Event", link(delivery.event_id, page_of(Event), delivery.event_id)),
                ("Subscription", self.receiver(delivery)),
                ("Tenant", self.whose(delivery)),
            ],
            "steps": [_shown(step) for step in steps],
            "left_out": delivery.attempt_count > len(attempts) and bool(attempts),
            "acts": [
                (act.title, f"admin:deliveries_delivery_{act.name}")
                for act in DELIVERY_ACTS.values()
                if delivery.status in act.of and self._may(request, act)
            ],
        }

    def _acts_on(self, request: HttpRequest, delivery: Delivery) -> list[Act]:
        """What the audit knows of it. Entries that are about many name the first ones, or none."""
        entries = AuditEntry.objects.of(delivery.subscription_id).filter(
            at__gte=delivery.created_at,
            action__in=[
                AuditEntry.Action.RESENT,
                AuditEntry.Action.REPLAYED,
                AuditEntry.Action.DISCARDED,
            ],
        )[:MAX_ENTRIES]
        names = request.user.has_perm("subscriptions.view_auditentry")
        found = []
        for entry in entries:
            who, detail = entry.who if names else "an operator", entry.detail
            if delivery.pk in detail.get("deliveries", ()):
                found.append(Act(entry.at, entry.action, who))
            elif entry.action == AuditEntry.Action.REPLAYED and _is_among(delivery, detail):
                found.append(Act(entry.at, AuditEntry.Action.RESENT, who, of_many=True))
        return found[::-1]

    # What an operator does. A button of a page and an action of the list lead to the same page.

    def _may(self, request: HttpRequest, act: DeliveryAct) -> bool:
        return bool(request.user.has_perm(f"deliveries.{act.permission}_delivery"))

    def has_resend_permission(self, request: HttpRequest) -> bool:
        return self._may(request, DELIVERY_ACTS["resend"])

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return self._may(request, DELIVERY_ACTS["discard"])

    @admin.action(description="Send again", permissions=["resend"])
    def resend(self, request: HttpRequest, chosen: QuerySet[Delivery]) -> HttpResponse:
        return self._act(request, DELIVERY_ACTS["resend"], chosen, "resend")

    @admin.action(description="Discard", permissions=["discard"])
    def discard(self, request: HttpRequest, chosen: QuerySet[Delivery]) -> HttpResponse:
        return self._act(request, DELIVERY_ACTS["discard"], chosen, "discard")

    def get_urls(self) -> list[URLPattern]:
        return [
            *(
                path(
                    f"<path:object_id>/{act.name}/",
                    self.admin_site.admin_view(partial(self.act_view, act)),
                    name=f"deliveries_delivery_{act.name}",
                )
                for act in DELIVERY_ACTS.values()
            ),
            *super().get_urls(),
        ]

    def act_view(self, act: DeliveryAct, request: HttpRequest, object_id: str) -> HttpResponse:
        if not self._may(request, act):
            raise PermissionDenied
        delivery = self.get_object(request, object_id)
        if delivery is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        return self._act(request, act, Delivery.objects.filter(pk=delivery.pk), "")

    def _act(
        self, request: HttpRequest, act: DeliveryAct, chosen: QuerySet[Delivery], action: str
    ) -> HttpResponse:
        """Ask, or do what was confirmed. `action`: the list's, that asks; none: one's own page."""
        some = list(chosen[: MAX_REPLAYED + 1])
        if not some:
            return self.gone(request)
        # To the list, filtered as it was.
        back = request.get_full_path()
        if not action:
            back = reverse("admin:deliveries_delivery_change", args=[some[0].pk])
        if len(some) > MAX_REPLAYED:
            refusal = (
                f"More than {MAX_REPLAYED:,} deliveries are chosen; nothing was done. "
                "`manage.py replay --subscription NAME` replays any number."
            )
            self.message_user(request, refusal, messages.ERROR)
            return redirect(back)
        if request.method == "POST" and "confirmed" in request.POST:
            done = act.do(sorted(one.pk for one in some))
            level = messages.SUCCESS if done.changed else messages.WARNING
            self.message_user(request, done.message, level)
            return redirect(back)
        forecast = act.forecast(some)
        return self.page(
            request,
            "admin/deliveries/act.html",
            act.title if action else f"{act.title}: {some[0]}",
            act=act,
            form=act.form(),
            forecast=forecast,
            asks=False,
            nothing=len(some) == forecast.left,
            chosen=some,
            action=action,
            back=back,
            action_checkbox_name=ACTION_CHECKBOX_NAME,
        )

    @admin.display(description="status")
    def status_now(self, delivery: Delivery) -> SafeString:
        status = Delivery.Status(delivery.status)
        return chip(str(status.label), STATUS_KINDS[status], delivery.last_error)

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
        return "now" if at <= timezone.now() else ago(at)

    @admin.display(description="last error")
    def error(self, delivery: Delivery) -> SafeString | str:
        return short(delivery.last_error, 50)

    @admin.display(description="published")
    def created(self, delivery: Delivery) -> SafeString | str:
        return ago(delivery.created_at)


def _is_among(delivery: Delivery, replayed: Mapping[str, Any]) -> bool:
    """Whether the replay was of its topic, and of its time."""
    topic, since, until = (replayed.get(name) for name in ("topic", "since", "until"))
    at, of_topic = delivery.created_at, delivery.topic  # type: ignore[attr-defined]
    return (
        topic in (None, of_topic)
        and (since is None or at >= datetime.fromisoformat(since))
        and (until is None or at < datetime.fromisoformat(until))
    )


def _name(key: UUID) -> str:
    known = Subscription.objects.only("name", "tenant").filter(pk=key).first()
    return "a deleted subscription" if known is None else str(known)


def _known(delivery: Delivery) -> tuple[Subscription | None, Lane | None]:
    """The subscription and its lane, as `prepared` has looked them up."""
    known: tuple[Subscription | None, Lane | None] = delivery.known  # type: ignore[attr-defined]
    return known


def _shown(step: Step) -> dict[str, Any]:
    """A step, as the page writes it."""
    attempt = step.attempt
    shown: dict[str, Any] = {"title": step.title, "kind": step.kind, "why": step.why}
    if step.at is not None:
        future = step.at > timezone.now()
        shown |= {"at": exact(step.at), "age": age(step.at), "future": future}
    if step.after:
        shown["after"] = span(step.after) if step.after >= 1 else f"{1000 * step.after:.0f} ms"
    if attempt is not None:
        shown |= {
            "outcome": outcome_chip(attempt),
            "duration": f"{attempt.duration_ms:,} ms",
            "address": attempt.remote_address,
            "error": attempt.error,
            "answer": attempt.response_body[:MAX_ANSWER],
            "link": reverse(f"admin:{page_of(Attempt)}", args=[attempt.pk]),
        }
    return shown
