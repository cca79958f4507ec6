"""What a notice says: as an event, and as an e-mail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.urls import NoReverseMatch, reverse

from subscriptions.conf import conf
from subscriptions.models import AuditEntry
from subscriptions.signals import one_line
from subscriptions.times import exact
from subscriptions.topics.rules import candidates

# The kind of a notice is its entry's action; a reset by a person ends a trip as a recovery does.
KINDS = {
    "tripped": "tripped",
    "recovered": "recovered",
    "reset": "recovered",
    "degraded": "degraded",
    "still_tripped": "still_tripped",
    "held_expiring": "held_expiring",
    "fuse_blown": "fuse_blown",
}
_HEADLINES = {
    "tripped": "{} has tripped; its deliveries are held",
    "recovered": "{} has recovered",
    "reset": "{} was reset",
    "degraded": "{} begins to fail",
    "still_tripped": "{} is still tripped",
    "held_expiring": "held deliveries of {} expire soon",
    "fuse_blown": "the fuse has blown: suspect our own network",
}
# As many notices as are claimed at a time, and are in one e-mail.
BATCH = 50


def topic(kind: str) -> str:
    if kind == "fuse_blown":
        return "system.webhooks.fuse.blown"
    return f"system.webhooks.subscription.{kind}"


TOPICS = tuple(topic(kind) for kind in dict.fromkeys(KINDS.values()))
_LISTENING = frozenset(pattern for one in TOPICS for pattern in candidates(one))


def listens(topic_patterns: Sequence[Any]) -> bool:
    """Whether a subscription with these patterns gets events about other subscriptions."""
    return any(isinstance(one, str) and one in _LISTENING for one in topic_patterns)


def event_id(entry: AuditEntry) -> str:
    """The same however often it is asked: an event is published once."""
    return f"webhooks-notice-{entry.pk}"


def link(entry: AuditEntry) -> str:
    """The admin's page of what the entry is about; empty if `base_url` is."""
    if not conf().base_url:
        return ""
    page, about = "admin:index", []
    if entry.subscription_id is not None:
        page, about = "admin:subscriptions_subscription_change", [str(entry.subscription_id)]
    try:
        return conf().base_url + reverse(page, args=about)
    except NoReverseMatch:  # a project without the admin
        return ""


def payload(entry: AuditEntry) -> dict[str, Any]:
    """Of the event. `docs/notices.md` explains it."""
    subscription = None
    if entry.subscription_id is not None:
        subscription = {
            "id": str(entry.subscription_id),
            "name": entry.subscription_name,
            "tenant": entry.tenant,
        }
    known = {
        name: entry.detail[name]
        for name in (
            *("status_code", "snippet", "first_failure_at", "failures", "threshold"),
            *("tripped_at", "count", "first_expires_at", "tripping", "active", "window_seconds"),
        )
        if name in entry.detail
    }
    return {
        "kind": KINDS[entry.action],
        "at": entry.at.isoformat(),
        "subscription": subscription,
        "reason": reason(entry),
        **known,
        "link": link(entry) or None,
    }


def reason(entry: AuditEntry) -> str:
    """Why, in one line."""
    if error := entry.detail.get("error"):
        return one_line(str(error))
    if entry.action == "recovered":
        return "a probe succeeded"
    if entry.action == "reset":
        return f"reset by {entry.who}"
    return entry.story


def headline(entry: AuditEntry) -> str:
    return _HEADLINES[entry.action].format(one_line(entry.subject))


def subject(entries: Sequence[AuditEntry]) -> str:
    """Of the e-mail: one line, whatever subscriptions are called."""
    if len(entries) == 1:
        return f"[webhooks] {headline(entries[0])}"
    counts: dict[str, int] = {}
    for entry in entries:
        kind = KINDS[entry.action].replace("_", " ")
        counts[kind] = counts.get(kind, 0) + 1
    told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    return f"[webhooks] {len(entries)} notices: {told}"


def text(entries: Sequence[AuditEntry]) -> str:
    return "\n\n".join(map(_paragraph, entries)) + "\n"


def _paragraph(entry: AuditEntry) -> str:
    lines = [f"{headline(entry)}.", ""]
    if entry.subscription_id is not None:
        lines.append(f"Subscription:   {one_line(entry.subject)} ({entry.subscription_id})")
    lines.append(f"At:             {exact(entry.at)}")
    for title, name in (
        ("Status", "status_code"),
        ("First failure", "first_failure_at"),
        ("Tripped since", "tripped_at"),
        ("Deliveries", "count"),
        ("First expires", "first_expires_at"),
        ("Answer", "snippet"),
    ):
        if value := entry.detail.get(name):
            lines.append(f"{title + ':':<15} {one_line(str(value))}")
    lines.append(f"Reason:         {reason(entry)}")
    if found := link(entry):
        lines.append(f"See:            {found}")
    return "\n".join(lines)
