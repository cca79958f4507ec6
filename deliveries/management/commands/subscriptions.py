"""`manage.py subscriptions`: who is subscribed, and how it goes."""

from __future__ import annotations

from textwrap import shorten
from typing import Any

from django.core.management.base import CommandParser

from deliveries.keeping.backlog import Backlog, backlogs
from subscriptions.management.base import WIDTH, OperatorCommand, add_json_flag
from subscriptions.models import Subscription

# What needs an operator comes first.
_ORDER = ("tripped", "paused", "active")


class Command(OperatorCommand):
    help = (
        "List the subscriptions with their state: tripped ones first, with the time of the trip "
        "and the last error. FAILS is the number of failures in a row."
    )
    examples = ("", "--state tripped", "--json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--state", choices=_ORDER, help="only those in this state")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Subscription.objects.all()
        if options["state"]:
            chosen = getattr(chosen, options["state"])()
        found = sorted(chosen, key=lambda one: (_ORDER.index(one.state), one.name))
        waiting = backlogs([one.pk for one in found] if options["state"] else None)
        if options["json"]:
            self.write_json([_as_json(one, waiting.get(one.pk, Backlog())) for one in found])
            return
        if not found:
            what = f"is {options['state']}" if options["state"] else "exists yet"
            self.stdout.write(f"No subscription {what}.")
            return
        self.stdout.write(_row("STATE", "TRIPPED AT (UTC)", "FAILS", "PENDING", "HELD", "NAME"))
        for one in found:
            backlog = waiting.get(one.pk, Backlog())
            since = one.auto_disabled_at
            self.stdout.write(
                _row(
                    one.state,
                    since.strftime("%Y-%m-%d %H:%M") if since else "-",
                    one.consecutive_failures,
                    backlog.pending,
                    backlog.held,
                    one.name,
                )
            )
            if one.last_error:
                self.stdout.write(f"         {shorten(one.last_error, WIDTH - 9)}")


def _row(state: str, since: str, fails: object, pending: object, held: object, name: str) -> str:
    return f"{state:<8} {since:<16} {fails:>5} {pending:>8} {held:>8}  {name}"


def _as_json(one: Subscription, backlog: Backlog) -> dict[str, Any]:
    return {
        "id": one.pk,
        "name": one.name,
        "url": one.url,
        "topic_patterns": one.topic_patterns,
        "state": one.state,
        "consecutive_failures": one.consecutive_failures,
        "auto_disabled_at": one.auto_disabled_at,
        "last_success_at": one.last_success_at,
        "last_failure_at": one.last_failure_at,
        "last_error": one.last_error,
        "next_probe_at": one.next_probe_at,
        "pending": backlog.pending,
        "held": backlog.held,
    }
