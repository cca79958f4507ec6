"""`manage.py audit`: who did what, when, and from where."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

from django.core.management.base import CommandError, CommandParser
from rich.text import Text

from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
    moment,
    whole_number,
)
from subscriptions.management.tables import Column, Row
from subscriptions.models import AuditEntry
from subscriptions.times import exact

_STYLES = {
    "tripped": "red",
    "still_tripped": "red",
    "fuse_blown": "red",
    "degraded": "yellow",
    "held_expiring": "yellow",
    "recovered": "green",
    "reset": "green",
}


class Command(OperatorCommand):
    help = (
        "List who did what, the newest first: changes by the admin, commands, the API and code, "
        "and what the system did by itself. Entries are kept for WEBHOOKS_KEEP_AUDIT_DAYS."
    )
    examples = (
        "",
        "--subscription billing --since 7d",
        "--action tripped --limit 20",
        "--untold",
        "--json",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--subscription", metavar="NAME", help="only of this one: name, or id (also if deleted)"
        )
        add_tenant_flag(parser)
        parser.add_argument(
            "--action",
            choices=AuditEntry.Action.values,
            metavar="ACTION",
            help=f"only these: {', '.join(AuditEntry.Action.values)}",
        )
        parser.add_argument("--via", choices=AuditEntry.Via.values, help="only from there")
        parser.add_argument(
            "--since",
            type=moment,
            metavar="TIME",
            help="since then: 2h, 7d, 2026-01-31T12:00 (UTC)",
        )
        parser.add_argument(
            "--untold", action="store_true", help="only notices that a channel has not taken"
        )
        parser.add_argument(
            "--limit", type=whole_number(1, 100_000), default=50, help="so many (%(default)s)"
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = AuditEntry.objects.all()
        if options["subscription"] is not None:
            chosen = chosen.of(_subscription_id(options["subscription"], options["tenant"]))
        if options["tenant"] is not None:
            chosen = chosen.filter(tenant=options["tenant"])
        if options["action"]:
            chosen = chosen.filter(action=options["action"])
        if options["via"]:
            chosen = chosen.filter(via=options["via"])
        if options["since"]:
            chosen = chosen.filter(at__gte=options["since"])
        if options["untold"]:
            chosen = chosen.untold()
        entries = list(chosen[: options["limit"]])
        if options["json"]:
            self.write_json([_as_json(entry) for entry in entries])
            return
        if not entries:
            self.stdout.write("No entry.")
            return
        columns = [
            Column("AT"),
            Column("ACTION"),
            Column("WHO", shrinks=True),
            Column("WHAT", shrinks=True),
        ]
        self.write_table(columns, [_row(entry) for entry in entries])


def _subscription_id(name_or_id: str, tenant: str | None) -> UUID:
    try:
        return find_one(name_or_id, tenant).pk
    except CommandError:
        # It may have been deleted.
        with suppress(ValueError):
            return UUID(name_or_id)
        raise


def _row(entry: AuditEntry) -> Row:
    notes = [entry.story] if entry.story else []
    if entry.notice_error:
        notes.append(f"not told: {entry.notice_error}")
    action = Text(entry.action, _STYLES.get(entry.action, ""))
    return Row([exact(entry.at), action, entry.who, entry.subject], notes)


def _as_json(entry: AuditEntry) -> dict[str, Any]:
    return {
        "id": entry.pk,
        "at": entry.at,
        "action": entry.action,
        "subscription_id": entry.subscription_id,
        "subscription_name": entry.subscription_name,
        "tenant": entry.tenant,
        "actor": entry.actor,
        "via": entry.via,
        "detail": entry.detail,
        "notified_at": entry.notified_at,
        "told": entry.told,
        "notice_error": entry.notice_error,
    }
