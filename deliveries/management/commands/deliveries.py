"""`manage.py deliveries`: the newest deliveries, or what happens just now."""

from __future__ import annotations

import select
import time
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import CommandError, CommandParser
from django.db import InterfaceError, OperationalError, connection
from psycopg_pool import PoolTimeout
from rich.text import Text

from deliveries.keeping.finding import ANSWERS, WantedDeliveries
from deliveries.keeping.following import Change, Follower
from deliveries.keeping.listing import MAX_LOOKED_AT, newest
from deliveries.models import Delivery
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
    moment,
    one_line,
    one_line_text,
    whole_number,
)
from subscriptions.management.tables import Column, Row, safe
from subscriptions.times import age, exact

# So many are listed, unless --limit says otherwise.
LIMIT = 50

# Seconds between two looks.
LOOK_EVERY = 1.0

_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "discarded": "dim",
    "held": "yellow",
    "tripped": "bold red",
    "fuse_blown": "bold red",
    "recovered": "bold green",
}


class Command(OperatorCommand):
    help = (
        "List deliveries, the newest first; those that are pending or held by subscription, and "
        "what is due, or was held, first. With --follow say what happens from now on, a line each, "
        "until Ctrl-C: what is published, attempted, held, sent again, discarded, and what "
        "the audit says of subscriptions. With --json an object on each line."
    )
    examples = (
        "--status failed --since 2h",
        "--subscription billing --topic order.created",
        "--event 0191… --json",
        "--answer 5xx --limit 20",
        "--follow --subscription billing",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--status", choices=[status.value for status in Delivery.Status], help="only these"
        )
        parser.add_argument("--subscription", metavar="NAME", help="only this one, a name or an id")
        parser.add_argument(
            "--topic", type=one_line_text, help="only of events with this very topic"
        )
        parser.add_argument(
            "--event", type=one_line_text, metavar="ID", help="only of the event with this id"
        )
        parser.add_argument(
            "--since", type=moment, metavar="TIME", help="published since then: 2h, 7d, 2026-01-31"
        )
        parser.add_argument(
            "--answer", choices=list(ANSWERS), help="whose last attempt was answered so"
        )
        parser.add_argument(
            "--limit",
            type=whole_number(1, 100_000),
            metavar="N",
            help=f"so many at most ({LIMIT})",
        )
        parser.add_argument("--follow", action="store_true", help="what happens from now on")
        add_tenant_flag(parser, "only what belongs to this tenant; '' is the application itself")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        name, tenant = options["subscription"], options["tenant"]
        if options["follow"] and options["limit"] is not None:
            raise CommandError("--limit does not go with --follow.", returncode=2)
        limit = LIMIT if options["limit"] is None else options["limit"]
        wanted = WantedDeliveries(
            subscription=None if name is None else find_one(name, tenant).pk,
            status=options["status"],
            topic=options["topic"],
            tenant=tenant,
            event=options["event"],
            since=options["since"],
            answered=ANSWERS.get(options["answer"]),
        )
        if options["follow"]:
            try:
                self._follow(wanted, as_json=options["json"])
            except KeyboardInterrupt:
                return
        elif options["json"]:
            for delivery in newest(wanted, limit, self._gave_up):
                self.write_json_line(_as_json(delivery))
        else:
            self._list(list(newest(wanted, limit, self._gave_up)))

    def _gave_up(self) -> None:
        self._warn(
            f"{MAX_LOOKED_AT:,} rows were looked at, and there may be more. --subscription, "
            "--tenant or --event looks at fewer; the admin's list goes on."
        )

    def _list(self, found: list[Delivery]) -> None:
        if not found:
            self.stdout.write("No delivery matches.")
            return
        self.write_table(
            [
                Column("ID", right=True),
                Column("STATUS"),
                Column("TRIES", right=True),
                Column("TOPIC", shrinks=True),
                Column("SUBSCRIPTION", shrinks=True),
                Column("PUBLISHED"),
            ],
            [
                Row(
                    [
                        str(one.pk),
                        safe(one.status, _STYLES.get(one.status, "")),
                        one.attempt_count,
                        _topic(one),
                        _subscription(one),
                        age(one.created_at),
                    ]
                )
                for one in found
            ],
        )

    def _follow(self, wanted: WantedDeliveries, *, as_json: bool) -> None:
        follower = Follower(wanted)
        away = False
        while self._wait():
            try:
                changes = follower.look()
            except (OperationalError, InterfaceError, PoolTimeout) as error:
                connection.close()
                if not away:
                    self._warn(f"The database is away: {one_line(error)}; waiting for it.")
                away = True
                continue
            if away:
                self._warn("The database is back; what happened meanwhile follows.")
            away = False
            for change in changes:
                if as_json:
                    self.write_json_line(_change_as_json(change))
                else:
                    self.write_line(_line(change))
            self.stdout.flush()

    def _warn(self, text: str) -> None:
        self.stderr.write(text)
        self.stderr.flush()

    def _wait(self) -> bool:
        """Until it is time to look again; False once nobody reads any more."""
        try:
            output = self.stdout.fileno()
        except (OSError, AttributeError):
            time.sleep(LOOK_EVERY)
            return True
        poll = select.poll()
        poll.register(output, 0)  # only whether the other end is closed
        return not poll.poll(LOOK_EVERY * 1000)


def _line(change: Change) -> Text:
    line = Text(end="").append(f"{exact(change.at)[11:]}  ", "dim")
    if change.entry is not None:
        entry = change.entry
        parts = [
            (entry.get_action_display(), _STYLES.get(entry.action, "bold")),
            (entry.subject, ""),
            (entry.story, ""),
            (f"by {entry.who}", "dim"),
        ]
        return line.append_text(Text("  ").join(safe(*part) for part in parts if part[0]))
    assert change.delivery is not None
    one, attempt = change.delivery, change.attempt
    what, style = change.what, _STYLES.get(change.what, "")
    if attempt is not None:
        answer = str(attempt.status_code or attempt.outcome)
        what = f"attempt {attempt.number}: {answer} in {attempt.duration_ms} ms"
        style = "green" if attempt.outcome == "success" else "red"
        if attempt.number == one.attempt_count and one.status not in ("succeeded", "pending"):
            what += f", {one.status}"
    elif what == "published" and one.status == "held":
        what, style = "published, held", _STYLES["held"]
    parts = [
        (str(one.pk), "dim"),
        (what, style),
        (f"{_topic(one)} → {_subscription(one)}", ""),
        (one_line(one.last_error) if what in ("discarded", "failed") else "", "dim"),
    ]
    return line.append_text(Text("  ").join(safe(*part) for part in parts if part[0]))


def _change_as_json(change: Change) -> dict[str, Any]:
    found: dict[str, Any] = {"what": change.what, "at": change.at}
    if change.entry is not None:
        entry = change.entry
        return found | {
            "subscription_id": entry.subscription_id,
            "subscription": entry.subject,
            "tenant": entry.tenant,
            "by": entry.actor,
            "via": entry.via,
            "detail": entry.detail,
        }
    assert change.delivery is not None
    if attempt := change.attempt:
        found |= {
            "number": attempt.number,
            "outcome": attempt.outcome,
            "status_code": attempt.status_code,
            "duration_ms": attempt.duration_ms,
        }
    return found | _as_json(change.delivery)


def _topic(delivery: Delivery) -> str:
    try:
        return delivery.event.topic
    except ObjectDoesNotExist:
        return ""


def _subscription(delivery: Delivery) -> str:
    try:
        return str(delivery.subscription)
    except ObjectDoesNotExist:
        return "(deleted)"


def _as_json(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.pk,
        "event_id": delivery.event_id,
        "topic": _topic(delivery),
        "subscription_id": delivery.subscription_id,
        "subscription": _subscription(delivery),
        "tenant": delivery.tenant,
        "status": delivery.status,
        "attempt_count": delivery.attempt_count,
        "created_at": delivery.created_at,
        "next_attempt_at": delivery.next_attempt_at,
        "held_at": delivery.held_at,
        "finished_at": delivery.finished_at,
        "last_error": delivery.last_error,
    }
