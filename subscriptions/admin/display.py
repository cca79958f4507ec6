"""How states, times and long texts look in the admin."""

from __future__ import annotations

import shlex
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.db.models import Model
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from subscriptions.conf import conf
from subscriptions.models import Subscription
from subscriptions.times import age


def chip(text: str, kind: str, title: str = "") -> SafeString:
    """A coloured label. `kind`: `good`, `idle`, `busy`, `warn` or `bad`."""
    return format_html('<span class="chip chip-{}" title="{}">{}</span>', kind, title, text)


def state_chip(subscription: Subscription) -> SafeString:
    """The state; a tripped one says when, why, and what to do."""
    state = subscription.state
    if state == "active" and subscription.consecutive_failures:
        return chip(
            f"FAILING · {subscription.consecutive_failures}/{conf().circuit_threshold}",
            "warn",
            f"{subscription.last_error or 'No error is known'}. It trips after "
            f"{conf().circuit_threshold} failures in a row.",
        )
    if state == "active":
        return chip("Active", "good")
    if state == "paused":
        return chip("Paused", "idle", "Paused by an operator. Resume it to send again.")
    assert subscription.auto_disabled_at is not None
    at = timezone.localtime(subscription.auto_disabled_at)
    today = at.date() == timezone.localdate()
    return chip(
        f"Tripped {at:%H:%M}" if today else f"Tripped {at:%d %b}",
        "bad",
        f"Tripped at {at:%Y-%m-%d %H:%M:%S %Z}: {subscription.last_error or 'no error is known'}. "
        "Select it and choose ‘Reset the circuit’, or run "
        f"manage.py reset_circuit {shlex.quote(subscription.name)}{_tenant_option(subscription)}",
    )


def _tenant_option(subscription: Subscription) -> str:
    return f" --tenant {shlex.quote(subscription.tenant)}" if subscription.tenant else ""


def ago(moment: datetime | None) -> SafeString | str:
    """`5 min ago`, with the exact time as its title."""
    if moment is None:
        return "–"
    local = timezone.localtime(moment)
    return format_html(
        '<time datetime="{}" title="{}" class="ago">{}</time>',
        local.isoformat(),
        f"{local:%Y-%m-%d %H:%M:%S %Z}",
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
    address = reverse(f"admin:{view}", args=args)
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
