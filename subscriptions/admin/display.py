"""How states, times and long texts look in the admin."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from django.contrib.admin.utils import quote
from django.db.models import Model
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from subscriptions.audit import masked_url
from subscriptions.conf import conf
from subscriptions.models import Subscription
from subscriptions.times import age, exact, percent


def chip(text: str, kind: str, title: str = "") -> SafeString:
    """A coloured label. `kind`: `good`, `idle`, `busy`, `warn` or `bad`."""
    return format_html('<span class="chip chip-{}" title="{}">{}</span>', kind, title, text)


_numbers = count()


def explained(text: str, kind: str, explanation: str) -> SafeString:
    """A chip that is a button: it opens what it means, by mouse, finger or keyboard."""
    key = f"explanation-{next(_numbers)}"
    return format_html(
        '<button type="button" class="chip chip-{}" popovertarget="{}" title="{}">{}</button>'
        '<span id="{}" class="explanation" popover>{}</span>',
        kind, key, explanation, text, key, explanation,
    )  # fmt: skip


def state_words(subscription: Subscription) -> tuple[str, str]:
    """The state as pages say it, and the kind of its chip."""
    state = subscription.state
    if state == "paused":
        return "PAUSED", "idle"
    if state == "tripped":
        assert subscription.auto_disabled_at is not None
        return f"TRIPPED · {exact(subscription.auto_disabled_at)[:-3]}", "bad"
    if subscription.consecutive_failures:
        return (
            f"FAILING · {subscription.consecutive_failures}/{conf().circuit_threshold}",
            "warn",
        )
    return "ACTIVE", "good"


def state_explanation(subscription: Subscription) -> str:
    """Why it is in this state, since when, when it is probed next, and what to do."""
    state = subscription.state
    why = subscription.last_error or "no error is known"
    if state == "paused":
        return "Paused by an operator. Resume it to send again."
    if state == "active":
        if not subscription.consecutive_failures:
            return "Events are sent as they are published."
        if subscription.consecutive_failures >= conf().circuit_threshold:
            return f"{why}. The next failure trips it, unless the fuse is blown."
        return f"{why}. It trips after {conf().circuit_threshold} failures in a row."
    assert subscription.auto_disabled_at is not None
    probe = subscription.next_probe_at
    return (
        f"Tripped at {exact(subscription.auto_disabled_at)}: {why}. "
        + (f"Next probe: {exact(probe)}. " if probe else "It is not probed by itself. ")
        + f"Reset the circuit here, or run manage.py reset_circuit {_arguments(subscription)}"
    )


def state_chip(subscription: Subscription) -> SafeString:
    """The state; it opens why, since when, and what to do."""
    return explained(*state_words(subscription), state_explanation(subscription))


def sparkline(hours: Sequence[tuple[datetime, int, int]]) -> SafeString | str:
    """Succeeded and failed attempts, an hour a bar; and in words, the share that succeeded."""
    succeeded, failed = sum(hour[1] for hour in hours), sum(hour[2] for hour in hours)
    if not succeeded + failed:
        return "–"
    share = percent(succeeded, succeeded + failed)
    in_words = (
        f"{share} of {succeeded + failed:,} attempts succeeded in the last {len(hours)} hours; "
        f"{failed:,} failed"
    )
    highest = max(hour[1] + hour[2] for hour in hours)
    bars: dict[str, list[str]] = {"good": [], "bad": []}
    for number, (_, good, bad) in enumerate(hours):
        # Something is never drawn as nothing.
        high, red = (max(20 * one / highest, 1.5) if one else 0 for one in (good, bad))
        for kind, bottom, height in (("good", 20 - red, high), ("bad", 20, red)):
            if height:
                bars[kind].append(f"M{number * 4} {bottom:.1f}h3v-{height:.1f}h-3z")
    return format_html(
        '<span class="spark"><svg role="img" aria-label="{}" viewBox="0 -2 {} 22">{}</svg>'
        "<span>{}</span></span>",
        in_words,
        len(hours) * 4,
        format_html_join(
            "",
            '<path class="spark-{}" d="{}"/>',
            ((kind, "".join(lines)) for kind, lines in bars.items() if lines),
        ),
        share,
    )


def patterns(subscription: Subscription) -> SafeString | str:
    """The first two topic patterns; `+N` opens the rest."""
    every = [str(one) for one in subscription.topic_patterns]
    shown = format_html_join(" ", "<code>{}</code>", ((short(one, 28),) for one in every[:2]))
    if not every[2:]:
        return shown or "–"
    return format_html("{} {}", shown, explained(f"+{len(every) - 2}", "idle", ", ".join(every)))


def receiver(url: str) -> SafeString:
    """The host; with a warning if what is sent can be read on its way."""
    shown = format_html('<span title="{}">{}</span>', masked_url(url), short(host(url), 32))
    if not url.lower().startswith("http://"):
        return shown
    warning = "http: what is sent is not encrypted; anybody on its way can read it. Use https."
    return format_html("{} {}", shown, explained("http", "warn", warning))


def _arguments(subscription: Subscription) -> str:
    """What names it to a command, in a shell. A name may look like an option."""
    name, tenant = subscription.name, subscription.tenant
    if name.startswith("-") or tenant.startswith("-"):
        return shlex.join([*([f"--tenant={tenant}"] if tenant else []), "--", name])
    return shlex.join([name, *(["--tenant", tenant] if tenant else [])])


def ago(moment: datetime | None) -> SafeString | str:
    """`5 min ago`, with the exact time as its title."""
    if moment is None:
        return "–"
    return format_html(
        '<time datetime="{}" title="{}" class="ago">{}</time>',
        timezone.localtime(moment).isoformat(),
        exact(moment),
        age(moment),
    )


def short(text: str, limit: int = 60) -> SafeString | str:
    """The beginning of a long text on one line, the whole as its title."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line or "–"
    return format_html('<span title="{}">{}</span>', text, Truncator(line).chars(limit))


def host(url: str) -> str:
    return urlsplit(url).netloc


def link(text: object, view: str, *args: Any, title: str = "", **query: Any) -> SafeString:
    """A link to a page of the admin; `query` is what it is filtered by."""
    address = reverse(f"admin:{view}", args=[quote(one) for one in args])
    return format_html(
        '<a href="{}{}" title="{}">{}</a>',
        address,
        f"?{urlencode(query)}" if query else "",
        title,
        text,
    )


def page_of(model: type[Model]) -> str:
    """The name of a model's change page in the admin, for `link`."""
    return f"{model._meta.app_label}_{model._meta.model_name}_change"
