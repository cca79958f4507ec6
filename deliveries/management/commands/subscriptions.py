"""`manage.py subscriptions`: who is subscribed, and how it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from django.core.management.base import CommandError, CommandParser
from rich.text import Text

from deliveries.keeping.backlog import (
    Backlog,
    Backoff,
    backlogs,
    backoff,
    being_discarded,
    fuse_blown_at,
    is_sending,
)
from deliveries.models import Lane
from subscriptions.conf import conf
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    when,
    whose,
)
from subscriptions.management.tables import Column, Row, safe
from subscriptions.models import Subscription
from subscriptions.times import age, exact

# What needs an operator comes first.
_ORDER = ("tripped", "failing", "paused", "active")


_CHOSEN: dict[str, Callable[[Any], Any]] = {
    "tripped": lambda chosen: chosen.tripped(),
    "failing": lambda chosen: chosen.active().filter(consecutive_failures__gt=0),
    "paused": lambda chosen: chosen.paused(),
    "active": lambda chosen: chosen.active(),
}


def _urgency(one: Subscription) -> tuple[int, str, str]:
    failing = one.state == "active" and one.consecutive_failures
    return _ORDER.index("failing" if failing else one.state), one.tenant, one.name


class _Shown(NamedTuple):
    """A subscription with all that is listed of it."""

    subscription: Subscription
    backlog: Backlog
    lane: Lane | None
    discarding: int

    @property
    def backoff(self) -> Backoff | None:
        if self.subscription.state == "paused":
            return None
        return backoff(self.lane, self.subscription.last_error)


class Command(OperatorCommand):
    help = (
        "List the subscriptions with their state: tripped ones first, with the time of the trip "
        "and the last error, then those that fail, with how many failures in a row of how many "
        "trip them; until when one backs off, and why. The first line says if the fuse is blown "
        "(with --json on standard error)."
    )
    examples = (
        "",
        "--state tripped",
        "--host hooks.example.com",
        "--tenant acme",
        "--lanes",
        "--json",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--state", choices=_ORDER, help="only those in this state")
        parser.add_argument(
            "--lanes", action="store_true", help="also say to whom a worker is sending just now"
        )
        parser.add_argument("--host", help="only those at this host, or host:port")
        add_tenant_flag(parser, "only those of this tenant; '' is the application itself")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Subscription.objects.all()
        if options["tenant"] is not None:
            chosen = chosen.filter(tenant=options["tenant"])
        if options["state"]:
            chosen = _CHOSEN[options["state"]](chosen)
        if options["host"] is not None:
            try:
                chosen = chosen.at_host(options["host"])
            except ValueError as error:
                raise CommandError(str(error), returncode=2) from None
        found = sorted(chosen, key=_urgency)
        narrowed = options["state"] or options["host"] or options["tenant"] is not None
        ids = [subscription.pk for subscription in found] if narrowed else None
        waiting = backlogs(ids)
        lanes = Lane.objects.in_bulk(ids)
        shown = [
            _Shown(
                subscription,
                waiting.get(subscription.pk, Backlog()),
                lanes.get(subscription.pk),
                being_discarded(lanes.get(subscription.pk)),
            )
            for subscription in found
        ]
        if blown_at := fuse_blown_at():
            (self.stderr if options["json"] else self.stdout).write(
                f"The fuse is blown since {when(blown_at)}: suspect our own network."
            )
        if options["json"]:
            self.write_json([_as_json(row) for row in shown])
            return
        if not shown:
            some = whose(options["tenant"]) + (f" at {options['host']}" if options["host"] else "")
            what = f"is {options['state']}" if options["state"] else "exists yet"
            self.stdout.write(f"No subscription{some} {what}.")
            return
        # A column for those who have tenants.
        tenants = any(_tenant(row.subscription) for row in shown)
        self.write_table(
            [
                Column("STATE"),
                *([Column("TENANT", shrinks=True)] if tenants else []),
                Column("NAME", shrinks=True),
                Column("HOST", shrinks=True),
                Column("PENDING", right=True),
                Column("HELD", right=True),
                Column("LAST OK"),
            ],
            [
                Row(
                    [
                        _state(row.subscription),
                        *([_tenant(row.subscription)] if tenants else []),
                        row.subscription.name,
                        urlsplit(row.subscription.url).netloc.rpartition("@")[2],
                        row.backlog.pending,
                        row.backlog.held,
                        age(at) if (at := row.subscription.last_success_at) else "never",
                    ],
                    list(_notes(row, lanes=options["lanes"])),
                )
                for row in shown
            ],
        )


def _state(subscription: Subscription) -> Text:
    if subscription.state == "tripped":
        return safe("TRIPPED", "bold red")
    if subscription.state == "paused":
        return safe("PAUSED", "dim")
    if failures := subscription.consecutive_failures:
        return safe(f"FAILING · {failures}/{conf().circuit_threshold}", "yellow")
    return safe("ACTIVE", "green")


def _tenant(subscription: Subscription) -> str:
    return "(all)" if subscription.all_tenants else subscription.tenant


def _notes(row: _Shown, *, lanes: bool) -> Iterator[str | Text]:
    """What is said below the row of a subscription, a line each."""
    if since := row.subscription.auto_disabled_at:
        yield safe(f"since {exact(since)} ({age(since)}): {row.subscription.last_error}", "red")
    if waits := row.backoff:
        yield str(waits)
    elif row.subscription.last_error and not since:
        yield row.subscription.last_error
    if row.discarding:
        yield f"discarding {row.discarding:,} of {row.backlog.held:,} held deliveries"
    if lanes and row.lane is not None and is_sending(row.lane):
        yield f"a worker is sending; its lease ends at {when(row.lane.lease_until)}"
    if lanes and row.lane is not None and row.lane.failures:
        yield f"{row.lane.failures} failed attempts in a row: one request at a time"


def _as_json(shown: _Shown) -> dict[str, Any]:
    subscription, lane, waits = shown.subscription, shown.lane, shown.backoff
    return {
        "id": subscription.pk,
        "tenant": subscription.tenant,
        "all_tenants": subscription.all_tenants,
        "name": subscription.name,
        "url": subscription.url,
        "topic_patterns": subscription.topic_patterns,
        "state": subscription.state,
        "consecutive_failures": subscription.consecutive_failures,
        "auto_disabled_at": subscription.auto_disabled_at,
        "last_success_at": subscription.last_success_at,
        "last_failure_at": subscription.last_failure_at,
        "last_error": subscription.last_error,
        "next_probe_at": subscription.next_probe_at,
        "pending": shown.backlog.pending,
        "held": shown.backlog.held,
        "discarding": shown.discarding,
        "backing_off_until": waits.until if waits else None,
        "backing_off_because": waits.because if waits else None,
        "failed_attempts": lane.failures if lane else 0,
        "sending_until": lane.lease_until if lane and is_sending(lane) else None,
    }
