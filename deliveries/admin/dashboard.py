"""The dashboard, the admin's first page: what is wrong, why, and where to look.

A page asks for its figures again every few seconds (`fragment`), all pages together once in
`KEPT` seconds. Each statement reads a bounded part of the tables; finished deliveries are never
counted, because the roll-ups have their numbers.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString

from deliveries.keeping.backlog import fuse_blown_at
from deliveries.keeping.statistics import HOURS, Worst, worst
from deliveries.monitoring.asking import Kept
from deliveries.monitoring.rollups import Traffic, last_minutes, total
from deliveries.monitoring.sweeps import seconds_since_sweep
from deliveries.monitoring.tables import COUNTED, Tables, read_tables
from deliveries.monitoring.workers import Worker, seen
from deliveries.waking.queues import DELIVER, MAINTENANCE, RECOVER
from subscriptions.admin.display import ago, link, page_of, short, state_chip
from subscriptions.models import AuditEntry, Subscription
from subscriptions.times import exact, percent, span

# How often a page asks again, and how long its figures are given to others, in seconds.
EVERY = 5
KEPT = 2.0
# Minutes of the two charts, and of one bar of the second.
HOUR, DAY, STEP = 60, 24 * 60, 30
# A sweep is late after so many seconds, a delivery that is due after so many.
LATE_SWEEP, LATE_DELIVERY = 60.0, 60.0

# What of the audit is told, and how many of it.
_TOLD = (
    AuditEntry.Action.TRIPPED,
    AuditEntry.Action.DEGRADED,
    AuditEntry.Action.RECOVERED,
    AuditEntry.Action.RESET,
    AuditEntry.Action.PAUSED,
    AuditEntry.Action.RESUMED,
    AuditEntry.Action.HELD_EXPIRING,
    AuditEntry.Action.FUSE_BLOWN,
    AuditEntry.Action.FUSE_RESET,
)
LATEST = 8
_KINDS = {
    AuditEntry.Action.TRIPPED: "bad",
    AuditEntry.Action.FUSE_BLOWN: "bad",
    AuditEntry.Action.RECOVERED: "good",
    AuditEntry.Action.RESET: "good",
}

_SERIES = (
    ("succeeded", "Succeeded", "#3b82f6"),
    ("retried", "Failed, tried again", "#f59e0b"),
    ("held", "Failed, held", "#8b5cf6"),
    ("failed", "Failed for good", "#dc2626"),
)
_AXIS = {"stacked": True, "border": {"display": False}}
_OPTIONS = {
    "animation": False,
    "responsive": True,
    "maintainAspectRatio": False,
    "interaction": {"mode": "index", "intersect": False},
    "datasets": {"bar": {"categoryPercentage": 0.9, "barPercentage": 1, "borderRadius": 1}},
    "scales": {
        "x": {
            **_AXIS,
            "grid": {"display": False},
            "ticks": {"maxTicksLimit": 7, "maxRotation": 0, "autoSkipPadding": 16},
        },
        "y": {
            **_AXIS,
            "beginAtZero": True,
            "suggestedMax": 4,
            "grid": {},
            "ticks": {"maxTicksLimit": 5, "precision": 0},
        },
    },
    "plugins": {
        "legend": {
            "align": "start",
            "labels": {"boxWidth": 8, "boxHeight": 8, "usePointStyle": True, "pointStyle": "rect"},
        },
    },
}


@dataclass(frozen=True, slots=True)
class _Figures:
    """`workers` and `sweep_lag` are None if Redis does not answer, the latter also before the
    first sweep."""

    at: datetime
    tables: Tables
    fuse_blown_at: datetime | None
    minutes: list[Traffic]
    worst: list[Worst]
    latest: list[AuditEntry]
    workers: list[Worker] | None
    sweep_lag: float | None


def _gather() -> _Figures:
    workers, sweep_lag = None, None
    # The page says that it is not known.
    with suppress(redis.RedisError):
        workers, sweep_lag = seen(), seconds_since_sweep()
    return _Figures(
        at=timezone.now(),
        tables=read_tables(),
        fuse_blown_at=fuse_blown_at(),
        minutes=last_minutes(DAY),
        worst=worst(),
        latest=_latest(),
        workers=workers,
        sweep_lag=sweep_lag,
    )


def _latest() -> list[AuditEntry]:
    """The newest of each action, by its index, and of these the newest."""
    newest = [AuditEntry.objects.filter(action=action)[:LATEST] for action in _TOLD]
    return list(newest[0].union(*newest[1:], all=True).order_by("-at", "-id")[:LATEST])


_kept = Kept(_gather, KEPT)


def dashboard(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What django-unfold calls for the first page (`DASHBOARD_CALLBACK`)."""
    return {
        **context,
        "title": "Dashboard",
        "every": EVERY,
        "fragment": reverse("admin-dashboard"),
        **_parts(request),
    }


def fragment(request: HttpRequest) -> HttpResponse:
    """The figures alone, for a page that is open; only for who may see the admin."""
    return TemplateResponse(request, "admin/deliveries/dashboard_figures.html", _parts(request))


def _parts(request: HttpRequest) -> dict[str, Any]:
    """What this user may view; a part that he may not is None."""
    user = request.user
    subscriptions = user.has_perm("subscriptions.view_subscription")
    deliveries = user.has_perm("deliveries.view_delivery")
    audit = user.has_perm("subscriptions.view_auditentry")
    if not subscriptions and not deliveries and not audit:
        return {"nothing": True}
    figures = _kept.get()
    return {
        "at": exact(figures.at),
        "fuse_blown_at": figures.fuse_blown_at and exact(figures.fuse_blown_at),
        "states": _states(figures.tables) if subscriptions else None,
        "numbers": _numbers(figures.minutes) if deliveries else None,
        "charts": _charts(figures.minutes) if deliveries else None,
        "queue": _queue(figures) if deliveries else None,
        "latest": _told(figures.latest, subscriptions=subscriptions) if audit else None,
        "audit": link("The whole audit", "subscriptions_auditentry_changelist") if audit else "",
        "worst": _worst(figures.worst, deliveries=deliveries) if subscriptions else None,
    }


def _address(view: str, **query: Any) -> str:
    return f"{reverse(f'admin:{view}_changelist')}{'?' if query else ''}{urlencode(query)}"


def _states(tables: Tables) -> list[dict[str, Any]]:
    """Tripped ones first; `kind` is empty where there is nothing to see."""
    numbers = tables.subscriptions
    active = numbers["active"] - tables.failing
    return [
        {
            "number": f"{number:,}",
            "word": word,
            "kind": kind if number else "",
            "link": _address("subscriptions_subscription", state=state),
        }
        for number, word, kind, state in (
            (numbers["tripped"], "TRIPPED", "bad", "tripped"),
            (tables.failing, "failing", "warn", "failing"),
            (numbers["paused"], "paused", "idle", "paused"),
            (active, "active", "good", "active"),
        )
    ]


def _numbers(minutes: Sequence[Traffic]) -> list[dict[str, Any]]:
    hour, day = total(minutes[-HOUR:]), total(minutes)
    deliveries = _address("deliveries_delivery")
    attempts = _address("deliveries_attempt")
    return [
        {
            "title": "Success rate",
            "value": percent(hour.succeeded, hour.attempts),
            "text": f"of {hour.attempts:,} attempts in the last hour; "
            f"{percent(day.succeeded, day.attempts)} of {day.attempts:,} in 24\u00a0h",
            "link": attempts,
        },
        {
            "title": "Failed for good",
            "value": f"{hour.failed:,}",
            "text": f"deliveries in the last hour; {day.failed:,} in 24\u00a0h",
            "link": _address("deliveries_delivery", status__exact="failed"),
            "kind": "bad" if hour.failed else "",
        },
        {
            "title": "Time of an attempt",
            "value": _time(hour.attempt_percentile(0.5)),
            "text": f"p50; p99 {_time(hour.attempt_percentile(0.99))}, in the last hour",
            "link": attempts,
        },
        {
            "title": "From publish to arrival",
            "value": _time(hour.arrival_percentile(0.5)),
            "text": f"p50; p99 {_time(hour.arrival_percentile(0.99))}, "
            "at the first attempt, in the last hour",
            "link": deliveries,
        },
    ]


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "–"
    if math.isinf(milliseconds):
        return "very long"
    if milliseconds < 1000:
        return f"{max(1, round(milliseconds))} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.1f} s"
    return span(milliseconds / 1000)


def _charts(minutes: Sequence[Traffic]) -> list[dict[str, Any]]:
    # Counted from now, not by the clock: a last bar of two minutes would look like an outage.
    steps = [total(minutes[first : first + STEP]) for first in range(0, DAY, STEP)]
    return [
        _chart("The last hour, minute by minute", "minute", minutes[-HOUR:]),
        _chart(f"The last 24 hours, {STEP} minutes at a time", f"{STEP} minutes", steps),
    ]


def _chart(title: str, unit: str, traffic: Sequence[Traffic]) -> dict[str, Any]:
    """The picture as data for Chart.js; as a sentence; and as a table of what is not empty."""
    labels = [f"{timezone.localtime(one.start):%H:%M}" for one in traffic]
    whole = total(traffic)
    parts = [f"{getattr(whole, name):,} {label.lower()}" for name, label, _ in _SERIES]
    most = max(traffic, key=lambda one: one.attempts)
    return {
        "title": title,
        "unit": unit,
        "said": f"{title}: {whole.attempts:,} attempts, of these {', '.join(parts)}. "
        + (
            f"Most, {most.attempts:,}, from {timezone.localtime(most.start):%H:%M} on."
            if whole.attempts
            else ""
        ),
        "options": json.dumps(_OPTIONS),
        "data": json.dumps(
            {
                "labels": labels,
                "datasets": [
                    {
                        "label": label,
                        "data": [getattr(one, name) for one in traffic],
                        "backgroundColor": colour,
                    }
                    for name, label, colour in _SERIES
                ],
            }
        ),
        "heads": [label for _, label, _ in _SERIES],
        "rows": [
            [label, *(f"{getattr(one, name):,}" for name, _, _ in _SERIES)]
            for label, one in zip(labels, traffic, strict=True)
            if one.attempts
        ],
    }


def _queue(figures: _Figures) -> list[dict[str, Any]]:
    tables, lag = figures.tables, figures.sweep_lag
    return [
        _line("Due now", _many(tables.due, tables.due + tables.later), "pending"),
        _line("Due later", _many(tables.later, tables.due + tables.later), "pending"),
        _line("Held", _many(tables.held, tables.held), "held"),
        _line(
            "Waits for a worker",
            f"for {span(tables.oldest_due)}" if tables.oldest_due >= 1 else "none",
            "pending",
            bad=tables.oldest_due > LATE_DELIVERY,
        ),
        {
            "word": "Last sweep",
            "value": f"{span(lag)} ago"
            if lag is not None
            else "none yet"
            if figures.workers is not None
            else "not known",
            "bad": lag is None or lag > LATE_SWEEP,
        },
        *_workers(figures.workers),
    ]


def _line(word: str, value: str, status: str, *, bad: bool = False) -> dict[str, Any]:
    shown = link(value, "deliveries_delivery_changelist", status__exact=status)
    return {"word": word, "value": shown, "bad": bad}


def _many(number: int, counted: int) -> str:
    return f"{'≈ ' if counted >= COUNTED else ''}{number:,}"


def _workers(workers: list[Worker] | None) -> list[dict[str, Any]]:
    if workers is None:
        return [{"word": "Workers", "value": "not known: Redis does not answer", "bad": True}]
    names: dict[str, list[str]] = defaultdict(list)
    for worker in workers:
        for queue in worker.queues:
            names[queue].append(worker.name)
    return [
        {
            "word": f"Workers: {queue}",
            "value": format_html(
                '<span title="{}">{}</span>', ", ".join(names[queue]), len(names[queue]) or "none"
            ),
            "bad": not names[queue],
        }
        for queue in (DELIVER, RECOVER, MAINTENANCE)
    ]


def _worst(found: Sequence[Worst], *, deliveries: bool) -> dict[str, Any]:
    """As the table of django-unfold wants it."""
    return {
        "headers": ["Subscription", "State", "Why", f"Failed in {HOURS} h"],
        "rows": [
            [
                _named(one.subscription),
                state_chip(one.subscription),
                _why(one.subscription),
                _failed(one, deliveries=deliveries),
            ]
            for one in found
        ],
    }


def _named(subscription: Subscription) -> SafeString:
    return link(str(subscription), page_of(Subscription), subscription.pk)


def _why(subscription: Subscription) -> SafeString | str:
    if subscription.last_error:
        return short(subscription.last_error, 70)
    if subscription.last_failure_at is None:
        return "–"
    return format_html("failed {}, well since", ago(subscription.last_failure_at))


def _failed(one: Worst, *, deliveries: bool) -> SafeString | str:
    text = f"{one.failed:,} of {one.attempts:,} attempts" if one.attempts else "no attempts"
    if not deliveries:
        return text
    return link(text, "deliveries_delivery_changelist", subscription=one.subscription.pk)


def _told(entries: Sequence[AuditEntry], *, subscriptions: bool) -> list[dict[str, Any]]:
    """Each as a line: what happened, to whom, when, and who did it or why."""
    return [
        {
            "ago": ago(entry.at),
            "what": entry.action.replace("_", " "),
            "kind": _KINDS.get(AuditEntry.Action(entry.action), ""),
            "name": link(entry.subject, page_of(Subscription), entry.subscription_id)
            if subscriptions and entry.subscription_id
            else entry.subject,
            "more": short(entry.story, 80)
            if entry.via == AuditEntry.Via.SYSTEM
            else f"by {entry.who}",
        }
        for entry in entries
    ]
