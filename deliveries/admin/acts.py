"""What an operator does to one subscription or to many: each asks first, and says what it will do.

Each act has a permission of its own, and a page of its own. The page is shown by a button of a
subscription's page, or by an action of the list; it says to how many rows what will happen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

from django import forms
from django.core import signing
from django.utils import timezone
from django.utils.translation import ngettext
from unfold.widgets import (
    UnfoldAdminRadioSelectWidget,
    UnfoldAdminTextInputWidget,
    UnfoldBooleanWidget,
)

from deliveries.admin.pagination import estimated_rows
from deliveries.keeping.backlog import Backlog, backlogs
from deliveries.keeping.moments import oldest
from deliveries.keeping.replay import BATCH, Chosen, Position, Replayed, replay_some
from deliveries.models import Delivery, Event
from subscriptions import circuit
from subscriptions.audit import masked_url
from subscriptions.models import Subscription
from subscriptions.times import parse_time
from subscriptions.topics.rules import InvalidTopic, validate_topic

# As many are counted; of more, PostgreSQL estimates the number. And so many are replayed while a
# person waits for a page, which then goes on with the next.
MAX_REPLAYED = 10_000


def many(number: int, one: str, more: str) -> str:
    """`1 circuit`, `1,204 circuits`."""
    return f"{number:,} {ngettext(one, more, number)}"


class Forecast(NamedTuple):
    """What an act would do to those chosen: `does` in a sentence, and what to whom.

    `left`: how many it leaves as they are, which are `left_because`.
    """

    does: str
    rows: Sequence[tuple[Subscription, str]]
    left: int = 0
    left_because: str = ""
    undo: str = ""


class Done(NamedTuple):
    """`going_on`: there is more to do; the form's field of this name takes it."""

    changed: int
    message: str
    going_on: str = ""


class ResetForm(forms.Form):
    held = forms.ChoiceField(
        label="What is held",
        choices=[("send", "is sent, gently at first"), ("discard", "is discarded, not sent")],
        initial="send",
        widget=UnfoldAdminRadioSelectWidget,
    )


_SALT = "deliveries.admin.replay"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay of several subscriptions, in the order of their ids, has come."""

    subscription: str
    position: Position | None
    replayed: Replayed

    def token(self) -> str:
        return signing.dumps([self.subscription, self.position, *self.replayed], salt=_SALT)


class ReplayForm(forms.Form):
    since = forms.CharField(
        label="Published since",
        widget=UnfoldAdminTextInputWidget(attrs={"placeholder": "2h, 7d or 2026-04-24 16:24"}),
    )
    failed_only = forms.BooleanField(
        label="Only what failed or was discarded",
        required=False,
        initial=True,
        widget=UnfoldBooleanWidget,
    )
    topic = forms.CharField(
        label="Topic",
        required=False,
        widget=UnfoldAdminTextInputWidget,
        help_text="Only events with this very topic; empty: any.",
    )
    going_on = forms.CharField(required=False, widget=forms.HiddenInput)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zone = timezone.get_current_timezone_name()
        self.fields["since"].help_text = f"In the time zone of the server, {zone}."

    def clean_since(self) -> datetime:
        try:
            since = parse_time(self.cleaned_data["since"], timezone.get_current_timezone())
        except ValueError as error:
            raise forms.ValidationError(str(error)) from None
        # The next pages are about the same time, whenever they are sent.
        data: Any = self.data
        self.data = data = data.copy()
        data["since"] = since.isoformat()
        return since

    def clean_topic(self) -> str:
        topic = str(self.cleaned_data["topic"]).strip()
        if topic:
            try:
                validate_topic(topic)
            except InvalidTopic as error:
                raise forms.ValidationError(str(error)) from None
        return topic

    def clean_going_on(self) -> Progress | None:
        if not (token := self.cleaned_data["going_on"]):
            return None
        try:
            subscription, position, *replayed = signing.loads(token, salt=_SALT)
        except signing.BadSignature:
            raise forms.ValidationError(
                "Nothing was done: this page is not what was shown. Begin again."
            ) from None
        return Progress(subscription, position and Position(*position), Replayed(*replayed))


class Act(NamedTuple):
    """`permission`: as in `subscriptions.{permission}_subscription`; `form`: what is asked."""

    name: str
    permission: str
    title: str
    icon: str
    forecast: Callable[[Sequence[Subscription], dict[str, Any]], Forecast]
    do: Callable[[Sequence[Subscription], dict[str, Any]], Done]
    states: frozenset[str] = frozenset({"active", "paused", "tripped"})
    form: type[forms.Form] = forms.Form
    form_first: bool = False


def _waiting(subscriptions: Sequence[Subscription]) -> dict[Any, Backlog]:
    found = backlogs([one.pk for one in subscriptions])
    return {one.pk: found.get(one.pk, Backlog()) for one in subscriptions}


def _of(chosen: Sequence[Subscription], *states: str) -> list[Subscription]:
    return [one for one in chosen if one.state in states]


def _forecast_reset(chosen: Sequence[Subscription], values: dict[str, Any]) -> Forecast:
    tripped = _of(chosen, "tripped")
    waiting = _waiting(tripped)
    held = sum(one.held for one in waiting.values())
    deliveries = many(held, "held delivery", "held deliveries")
    return Forecast(
        f"{many(len(tripped), 'circuit is', 'circuits are')} reset; "
        + (f"{deliveries} will be sent or discarded, as you choose." if held else "none is held."),
        [(one, f"{waiting[one.pk].held:,} held") for one in tripped],
        len(chosen) - len(tripped),
        "not tripped",
        "What was sent cannot be called back. A pause stops the rest; what was discarded stays "
        "listed and can be replayed.",
    )


def _reset(chosen: Sequence[Subscription], values: dict[str, Any]) -> Done:
    discards = values["held"] == "discard"
    changed = circuit.reset([one.pk for one in _of(chosen, "tripped")], discard_held=discards)
    if not changed:
        return Done(0, "No circuit was reset: none of those chosen is tripped any more.")
    held = "What was held is discarded." if discards else "What was held is being sent."
    return Done(len(changed), f"{many(len(changed), 'circuit was', 'circuits were')} reset. {held}")


def _forecast_pause(chosen: Sequence[Subscription], values: dict[str, Any]) -> Forecast:
    running = _of(chosen, "active", "tripped")
    waiting = _waiting(running)
    pending = sum(one.pending for one in waiting.values())
    return Forecast(
        f"{many(len(running), 'subscription is', 'subscriptions are')} paused; "
        f"{many(pending, 'pending delivery is', 'pending deliveries are')} held. "
        "What is published meanwhile is not kept for them.",
        [(one, f"{waiting[one.pk].pending:,} pending") for one in running],
        len(chosen) - len(running),
        "paused already",
        "Resume sends what is held.",
    )


def _pause(chosen: Sequence[Subscription], values: dict[str, Any]) -> Done:
    changed = circuit.pause([one.pk for one in chosen])
    if not changed:
        return Done(0, "No subscription was paused: none of those chosen is active or tripped.")
    paused = many(len(changed), "subscription was", "subscriptions were")
    return Done(len(changed), f"{paused} paused. What was pending is held until they are resumed.")


def _forecast_resume(chosen: Sequence[Subscription], values: dict[str, Any]) -> Forecast:
    paused = _of(chosen, "paused")
    waiting = _waiting(paused)
    held = sum(one.held for one in waiting.values())
    return Forecast(
        f"{many(len(paused), 'subscription is', 'subscriptions are')} resumed; "
        f"{many(held, 'held delivery is', 'held deliveries are')} sent.",
        [(one, f"{waiting[one.pk].held:,} held") for one in paused],
        len(chosen) - len(paused),
        "not paused",
        "Pause stops what is not sent by then.",
    )


def _resume(chosen: Sequence[Subscription], values: dict[str, Any]) -> Done:
    changed = circuit.reset([one.pk for one in _of(chosen, "paused")])
    if not changed:
        return Done(0, "No subscription was resumed: none of those chosen is paused any more.")
    resumed = many(len(changed), "subscription was", "subscriptions were")
    return Done(len(changed), f"{resumed} resumed. What was held is being sent.")


def _choices(chosen: Sequence[Subscription], values: dict[str, Any]) -> list[Chosen]:
    statuses = [Delivery.Status.FAILED, Delivery.Status.DISCARDED]
    if not values["failed_only"]:
        statuses.append(Delivery.Status.SUCCEEDED)
    after = oldest(values["since"])
    return [
        Chosen(
            one,
            statuses=statuses,
            since=values["since"],
            topic=values["topic"] or None,
            after=after,
        )
        for one in chosen
    ]


def _count(choice: Chosen, room: int) -> tuple[int, int]:
    """How many are looked at (no more than one past `room`), and how many of them are replayed."""
    rows = replace(choice, topic=None).rows().order_by()
    events = list(rows.values_list("event_id", flat=True)[: room + 1])
    if choice.topic is None:
        return len(events), len(events)
    found = 0
    for start in range(0, len(events), BATCH):
        some = events[start : start + BATCH]
        found += Event.objects.filter(pk__in=some, topic=choice.topic).count()
    return len(events), found


def _forecast_replay(chosen: Sequence[Subscription], values: dict[str, Any]) -> Forecast:
    if not values:
        return Forecast("Finished deliveries are sent again, with the webhook-id they had.", [])
    room, rows, total = MAX_REPLAYED, [], 0
    for choice in _choices(chosen, values):
        about, looked = "", 0
        if room >= 0:
            looked, found = _count(choice, room)
            room -= looked
        if room < 0:
            # What was counted is there, whatever PostgreSQL expects.
            expected = estimated_rows(replace(choice, topic=None).rows())
            about, found = "about ", max(looked, expected)
        total += found
        rows.append((choice.subscription, about + many(found, "delivery", "deliveries")))
    deliveries = many(total, "delivery is", "deliveries are")
    again = "sent again, with the webhook-id they had"
    does = f"{deliveries} {again}"
    if room < 0:
        looked_at = "looked at, and those of the topic are " if values["topic"] else ""
        does = (
            f"About {deliveries} {looked_at}{again}: {MAX_REPLAYED:,} at a time, while the next "
            "page is open"
        )
    return Forecast(
        f"{does}; to those that are paused or tripped when they are active again.",
        rows,
        undo="What was sent cannot be called back. A pause stops the rest.",
    )


def _replay(chosen: Sequence[Subscription], values: dict[str, Any]) -> Done:
    """The next part of it: of several small subscriptions, or of a large one."""
    begun: Progress | None = values["going_on"]
    position, total = (begun.position, begun.replayed) if begun else (None, Replayed())
    before = sum(total)
    choices = sorted(_choices(chosen, values), key=lambda choice: str(choice.subscription.pk))
    if begun:
        # One that was deleted meanwhile takes its place in the others' with it.
        if begun.subscription not in {str(choice.subscription.pk) for choice in choices}:
            position = None
        choices = [one for one in choices if str(one.subscription.pk) >= begun.subscription]
    for number, choice in enumerate(choices):
        here = str(choice.subscription.pk)
        if number == _MANY or sum(total) - before >= MAX_REPLAYED:
            return _so_far(total, Progress(here, None, total))
        replayed, position = replay_some(choice, position, MAX_REPLAYED // BATCH)
        total = Replayed(total.pending + replayed.pending, total.held + replayed.held)
        if position is not None:
            return _so_far(total, Progress(here, position, total))
    return _so_far(total)


# Subscriptions in one part of a replay: each costs a transaction.
_MANY = 100


def _so_far(total: Replayed, progress: Progress | None = None) -> Done:
    message = f"{many(total.pending, 'delivery is', 'deliveries are')} being sent again."
    if total.held:
        message += f" {many(total.held, 'is', 'are')} held until the subscription is active again."
    return Done(sum(total), message, progress.token() if progress else "")


def _forecast_test(chosen: Sequence[Subscription], values: dict[str, Any]) -> Forecast:
    return Forecast(
        f"{many(len(chosen), 'test event is', 'test events are')} sent now, and the answers are "
        "shown. No circuit counts them, and nothing else is changed.",
        [(one, masked_url(one.url)) for one in chosen],
    )


ACTS = {
    act.name: act
    for act in (
        Act("reset", "reset", "Reset the circuit", "restart_alt", _forecast_reset, _reset,
            frozenset({"tripped"}), ResetForm),
        Act("pause", "pause", "Pause", "pause", _forecast_pause, _pause,
            frozenset({"active", "tripped"})),
        Act("resume", "pause", "Resume", "play_arrow", _forecast_resume, _resume,
            frozenset({"paused"})),
        Act("replay", "replay", "Replay", "replay", _forecast_replay, _replay,
            form=ReplayForm, form_first=True),
        Act("send_test", "test", "Send a test event", "send", _forecast_test,
            lambda chosen, values: Done(0, "")),
    )
}  # fmt: skip
