"""`manage.py subscriptions`: who is subscribed, and how it goes."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import shorten
from typing import Any, NamedTuple

from django.core.management.base import CommandParser

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
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    when,
)
from subscriptions.management.tables import WIDTH
from subscriptions.models import Subscription

# What needs an operator comes first.
_ORDER = ("tripped", "paused", "active")


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
        "and the last error; until when one backs off, and why. FAILS is the number of failures "
        "in a row. The first line says if the fuse is blown (with --json on standard error)."
    )
    examples = ("", "--state tripped", "--tenant acme", "--lanes", "--json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--state", choices=_ORDER, help="only those in this state")
        parser.add_argument(
            "--lanes", action="store_true", help="also say to whom a worker is sending just now"
        )
        add_tenant_flag(parser, "only those of this tenant; '' is the application itself")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = Subscription.objects.all()
        if options["tenant"] is not None:
            chosen = chosen.filter(tenant=options["tenant"])
        if options["state"]:
            chosen = getattr(chosen, options["state"])()
        found = sorted(chosen, key=lambda one: (_ORDER.index(one.state), one.tenant, one.name))
        some = options["state"] or options["tenant"] is not None
        ids = [subscription.pk for subscription in found] if some else None
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
            whose = f" of the tenant {options['tenant']!r}" if options["tenant"] else ""
            what = f"is {options['state']}" if options["state"] else "exists yet"
            self.stdout.write(f"No subscription{whose} {what}.")
            return
        # A column for those who have tenants, as wide as the longest one.
        tenants = [_tenant(row.subscription) for row in shown]
        width = max(len("TENANT"), *map(len, tenants)) if any(tenants) else 0
        title = f"{'TENANT':<{width}}  NAME" if width else "NAME"
        self.stdout.write(_row("STATE", "TRIPPED AT (UTC)", "FAILS", "PENDING", "HELD", title))
        for row in shown:
            since = row.subscription.auto_disabled_at
            self.stdout.write(
                _row(
                    row.subscription.state,
                    since.strftime("%Y-%m-%d %H:%M") if since else "-",
                    row.subscription.consecutive_failures,
                    row.backlog.pending,
                    row.backlog.held,
                    f"{_tenant(row.subscription):<{width}}  {row.subscription.name}"
                    if width
                    else row.subscription.name,
                )
            )
            for note in _notes(row, lanes=options["lanes"]):
                self.stdout.write(f"         {shorten(note, WIDTH - 9)}")


def _tenant(subscription: Subscription) -> str:
    return "(all)" if subscription.all_tenants else subscription.tenant


def _row(state: str, since: str, fails: object, pending: object, held: object, name: str) -> str:
    return f"{state:<8} {since:<16} {fails:>5} {pending:>8} {held:>8}  {name}"


def _notes(row: _Shown, *, lanes: bool) -> Iterator[str]:
    """What is said below the row of a subscription, a line each."""
    if waits := row.backoff:
        yield str(waits)
    elif row.subscription.last_error:
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
