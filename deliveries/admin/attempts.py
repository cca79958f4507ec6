"""Attempts in Django's admin, to be read. Their table is as large as that of deliveries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString

from deliveries.admin.readonly import (
    BY_SINCE,
    BY_UNTIL,
    ByAnswer,
    NothingFound,
    ReadOnlyAdmin,
    answer,
    by,
    moment,
    number,
)
from deliveries.keeping.finding import WantedAttempts
from deliveries.keeping.keyset import Search
from deliveries.keeping.story import verdict
from deliveries.models import Attempt, Delivery
from subscriptions.admin.display import ago, chip, link, page_of, short
from subscriptions.times import age, exact

# Characters of an answer, of which no more are kept.
MAX_ANSWER = 1024


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
    list_filter = (ByAnswer, BY_SINCE, BY_UNTIL, by("delivery"))
    search_fields = ("id",)
    search_help_text = "The id of a delivery or of an event, in full"
    page_template = "admin/deliveries/attempt.html"

    def search(self, values: Mapping[str, str], term: str) -> tuple[Search[Any], list[str]]:
        key, event = ids_of(term, None)
        if "delivery" in values:
            found, key = key, number(values["delivery"])
            if key is None or found not in (None, key):
                raise NothingFound
        search = WantedAttempts(
            delivery=key,
            event=event,
            answered=answer(values),
            since=moment(values, "since"),
            until=moment(values, "until"),
        ).search()
        return search, []

    def details(self, request: HttpRequest, attempt: Attempt) -> dict[str, Any]:
        return {
            "attempt": attempt,
            "outcome": self.outcome_now(attempt),
            "why": verdict(attempt)[1],
            "answer": attempt.response_body[:MAX_ANSWER],
            "facts": [
                ("Delivery", self.delivery_link(attempt)),
                ("Number", attempt.number),
                ("Started", f"{exact(attempt.started_at)} ({age(attempt.started_at)})"),
                ("Took", self.duration(attempt)),
                ("Address", attempt.remote_address or "–"),
                ("Outcome", attempt.outcome),
            ],
        }

    @admin.display(description="outcome")
    def outcome_now(self, attempt: Attempt) -> SafeString:
        return outcome_chip(attempt)

    @admin.display(description="delivery")
    def delivery_link(self, attempt: Attempt) -> SafeString:
        return link(attempt.delivery_id, page_of(Delivery), attempt.delivery_id)

    @admin.display(description="answer or error")
    def what(self, attempt: Attempt) -> SafeString | str:
        return short(attempt.error or attempt.response_body)

    @admin.display(description="took")
    def duration(self, attempt: Attempt) -> str:
        return f"{attempt.duration_ms:,} ms"

    @admin.display(description="started")
    def started(self, attempt: Attempt) -> SafeString | str:
        return ago(attempt.started_at)


def ids_of(term: str, event: str | None) -> tuple[int | None, str | None]:
    """The delivery, or else the event, that is searched for; or the event of the filter."""
    key = number(term)
    if key is not None and Delivery.objects.filter(pk=key).exists():
        return key, event
    if term and event is not None and term != event:
        raise NothingFound
    return None, term or event


def outcome_chip(attempt: Attempt) -> SafeString:
    """What came of it, in a colour; its error is the tooltip."""
    if attempt.outcome == "success":
        return chip(str(attempt.status_code), "good")
    text = attempt.outcome if attempt.status_code is None else str(attempt.status_code)
    return chip(text, "idle" if attempt.outcome == "unknown" else "bad", attempt.error)
