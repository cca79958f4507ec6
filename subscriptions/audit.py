"""The audit: who did what to which subscription, when, and from where.

Each entry is written by the function that makes the change, in its transaction, so that no page,
command or route can forget it, and no entry tells of what was not done. `acting` says who acts:
the admin's middleware, the API and the commands call it. What workers do by themselves (trips,
recoveries, the fuse) is by `system`.

Some entries are also notices, to be told to people (`notify`): the entry is the outbox, and
`deliveries.notices` tells it after the commit.

Deals in ids and SQL, below the models, because the circuit writes entries.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connection

from subscriptions import signals

MASKED = "***"
_MAX_ACTOR = 200

_acting: ContextVar[tuple[str | Callable[[], str], str]] = ContextVar(
    "acting", default=("", "code")
)


@contextmanager
def acting(actor: str | Callable[[], str], via: str) -> Iterator[None]:
    """Entries that are written inside say that `actor` did it, `via` admin, command, api or code.

    A callable is asked when an entry is written, and not before.
    """
    token = _acting.set((actor, via))
    try:
        yield
    finally:
        _acting.reset(token)


def who_acts() -> tuple[str, str]:
    """The actor, and via what, as entries that are written now say it."""
    actor, via = _acting.get()
    return (actor if isinstance(actor, str) else actor())[:_MAX_ACTOR], via


def system_user() -> str:
    """Who runs this process, as the operating system says; with `sudo`, who called it."""
    try:
        # Not `getpass.getuser()`, which believes LOGNAME and USER.
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may know no names
        user = f"uid {os.getuid()}"
    called_by = os.environ.get("SUDO_USER", "")
    return f"{called_by} as {user}" if called_by and called_by != user else user


@dataclass(frozen=True, slots=True)
class Entry:
    """What one entry is about. `tenant` is for those without a subscription.

    `key`: what is written once, however often it is asked for. `detail`: values for JSON.
    """

    subscription_id: UUID | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None
    tenant: str = ""


# The name and the tenant stay with the entry, whatever becomes of the subscription. A replay of
# many batches is one entry, which counts them all.
_INSERT = """
INSERT INTO subscriptions_auditentry AS known (
    at, action, subscription_id, subscription_name, tenant, actor, via, detail, key, notify_at,
    told, notice_attempts, notice_error
)
SELECT clock_timestamp(), %(action)s, e.subscription_id, coalesce(s.name, ''),
    coalesce(s.tenant, e.tenant), %(actor)s, %(via)s, e.detail, e.key,
    CASE WHEN %(notify)s THEN now() END, '[]', 0, ''
FROM json_to_recordset(%(entries)s::json) AS e (
    subscription_id uuid, detail jsonb, key text, tenant text
)
LEFT JOIN LATERAL (
    SELECT name, tenant FROM subscriptions_subscription WHERE id = e.subscription_id LIMIT 1
) AS s ON true
ON CONFLICT (key) WHERE key IS NOT NULL DO UPDATE SET detail = known.detail || jsonb_build_object(
    'count', (known.detail ->> 'count')::bigint + (excluded.detail ->> 'count')::bigint
) WHERE %(adds_up)s
RETURNING id
"""


def record(
    action: str,
    about: Iterable[UUID | Entry] = (Entry(),),
    *,
    detail: Mapping[str, Any] | None = None,
    by_system: bool = False,
    notify: bool = False,
    adds_up: bool = False,
) -> list[int]:
    """Write an entry for each of `about`, by one statement; returns the ids of what was written.

    In the caller's transaction, which must be the one of the change itself. `detail` is for the
    ids among `about`. `by_system`: nobody asked for it. `notify`: to be told to people. Of a known
    key nothing is written; with `adds_up`, the new entry's `count` is added to the known one's.
    """
    entries = [
        one if isinstance(one, Entry) else Entry(one, detail if detail is not None else {})
        for one in about
    ]
    if not entries:
        return []
    actor, via = ("", "system") if by_system else who_acts()
    with connection.cursor() as cursor:
        cursor.execute(
            _INSERT,
            {
                "action": action,
                "actor": actor,
                "via": via,
                "entries": json.dumps(
                    [
                        {
                            "subscription_id": entry.subscription_id,
                            "detail": entry.detail,
                            "key": entry.key,
                            "tenant": entry.tenant,
                        }
                        for entry in entries
                    ],
                    default=str,
                ),
                "notify": notify,
                "adds_up": adds_up,
            },
        )
        written = [row[0] for row in cursor.fetchall()]
    if notify and written:
        signals.notices_recorded.send(sender=None, entry_ids=written)
    return written


# So many ids of deliveries are in an entry, the first ones.
_MAX_IDS = 20


def of_deliveries(rows: Iterable[tuple[int, UUID]]) -> list[Entry]:
    """An entry for each subscription of these deliveries (id, subscription), with their number."""
    ids: dict[UUID, list[int]] = {}
    for delivery_id, subscription_id in rows:
        ids.setdefault(subscription_id, []).append(delivery_id)
    return [
        Entry(key, {"count": len(some), "deliveries": sorted(some)[:_MAX_IDS]})
        for key, some in ids.items()
    ]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a change of fields is in an entry: of each field that differs, old and new value.

    Without `old` where that is not known. Values of headers and the query of a URL, which may be
    tokens, are masked.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, value in new.items():
        if name in old and old[name] == value:
            continue
        known = {"old": old[name]} if name in old else {}
        found[name] = {**known, "new": value}
        if name in _MASKS:
            mask = _MASKS[name]
            found[name] = {key: mask(one) for key, one in found[name].items()}
            if found[name].get("old") == found[name]["new"]:
                found[name]["new"] = mask(value, " (another value)")
    return found


def _masked_headers(headers: Any, note: str = "") -> Any:
    return dict.fromkeys(headers, MASKED + note) if isinstance(headers, dict) else MASKED + note


def masked_url(url: Any, note: str = "") -> str:
    """Without the query, where tokens are."""
    address, question, _ = str(url).partition("?")
    return f"{address}{question and question + MASKED}{note}"


_MASKS: dict[str, Callable[..., Any]] = {"headers": _masked_headers, "url": masked_url}


def story(detail: Mapping[str, Any]) -> str:
    """What is worth knowing of an entry, in one line; empty if the action says it all."""
    parts = []
    if fields := detail.get("fields"):
        parts += [f"{name}: {_change(change)}" for name, change in fields.items()]
    if (failures := detail.get("failures")) is not None:
        parts.append(
            "one 410 is enough"
            if detail.get("status_code") == 410 and failures < detail["threshold"]
            else f"{failures} of {detail['threshold']} failures in a row"
        )
    if "tripping" in detail:
        parts.append(
            f"{detail['tripping']} of {detail['active']} could not be reached within "
            f"{detail['window_seconds']:g} s"
        )
    if count := detail.get("count"):
        parts.append(f"{count:,} {'delivery' if count == 1 else 'deliveries'}")
    for name, text in (
        ("status", "with the status {}"),
        ("topic", "topic {}"),
        ("since", "since {}"),
        ("until", "until {}"),
        ("first_expires_at", "the first expires at {}"),
        ("old_secrets_end_at", "the old ones end at {}"),
        ("tripped_at", "tripped since {}"),
        ("backoff", "its backoff was {}"),
        ("held", "what was held is {}"),
        ("answer", "{}"),
        ("scopes", "for {}"),
        ("error", "{}"),
    ):
        if value := detail.get(name):
            parts.append(text.format(_text(name, value)))
    return "; ".join(parts)


def _change(change: Mapping[str, Any]) -> str:
    if "old" not in change:
        return _text("", change["new"])
    return f"{_text('', change['old'])} → {_text('', change['new'])}"


def _text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {one}" for key, one in value.items()) or "none"
    text = signals.one_line(str(value))
    if name.endswith(("_at", "since", "until")):
        # As PostgreSQL and Python write a time, without the fractions of its second.
        return text[:19].replace("T", " ")
    return text or "none"
