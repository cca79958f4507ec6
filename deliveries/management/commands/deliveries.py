"""`manage.py deliveries`: the newest deliveries, or what happens just now."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from django.core.management.base import CommandError, CommandParser
from django.db.models import Max
from rich.text import Text

from deliveries.keeping.listing import Wanted, after, newest
from deliveries.models import Attempt, Delivery
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
    moment,
    whole_number,
)
from subscriptions.management.tables import Column, Row, safe
from subscriptions.times import age, exact

# Seconds between two looks, and how many ids back it looks for what was committed late.
LOOK_EVERY = 1.0
LATE = 500

_STYLES = {"succeeded": "green", "failed": "red", "discarded": "dim", "held": "yellow"}
_ANSWERS = {"2xx": 2, "3xx": 3, "4xx": 4, "5xx": 5, "none": 0}


class Command(OperatorCommand):
    help = (
        "List deliveries, the newest first. With --follow say what is published and attempted from "
        "now on, a line each, until Ctrl-C. With --json an object on each line."
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
        parser.add_argument("--topic", help="only of events with this very topic")
        parser.add_argument("--event", metavar="ID", help="only of the event with this id")
        parser.add_argument(
            "--since", type=moment, metavar="TIME", help="published since then: 2h, 7d, 2026-01-31"
        )
        parser.add_argument(
            "--answer", choices=list(_ANSWERS), help="with an attempt that was answered so"
        )
        parser.add_argument(
            "--limit",
            type=whole_number(1, 100_000),
            default=50,
            metavar="N",
            help="so many at most (%(default)s)",
        )
        parser.add_argument("--follow", action="store_true", help="what happens from now on")
        add_tenant_flag(parser, "only what belongs to this tenant; '' is the application itself")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        name, tenant = options["subscription"], options["tenant"]
        if "\0" in (options["topic"] or "") + (options["event"] or ""):
            raise CommandError("A topic and an id of an event have no NUL.", returncode=2)
        wanted = Wanted(
            subscription=None if name is None else find_one(name, tenant),
            status=options["status"],
            topic=options["topic"],
            tenant=tenant,
            event=options["event"],
            since=options["since"],
            answered=_ANSWERS.get(options["answer"]),
        )
        if options["follow"]:
            try:
                self._follow(wanted, as_json=options["json"])
            except KeyboardInterrupt:
                return
        elif options["json"]:
            for delivery in newest(wanted, options["limit"]):
                self.write_json_line(_as_json(delivery))
        else:
            self._list(list(newest(wanted, options["limit"])))

    def _list(self, found: list[Delivery]) -> None:
        if not found:
            self.stdout.write("No delivery is so.")
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

    def _follow(self, wanted: Wanted, *, as_json: bool) -> None:
        places = {model: _Place(model) for model in (Delivery, Attempt)}
        while self._wait():
            for delivery in places[Delivery].new(wanted):
                self._say(delivery.created_at, "published", delivery, {}, as_json=as_json, style="")
            for attempt in places[Attempt].new(wanted):
                answer = str(attempt.status_code or attempt.outcome)
                good = attempt.outcome == "success"
                told = {
                    "number": attempt.number,
                    "outcome": attempt.outcome,
                    "status_code": attempt.status_code,
                    "duration_ms": attempt.duration_ms,
                }
                what = f"attempt {attempt.number}: {answer} in {attempt.duration_ms} ms"
                self._say(
                    attempt.started_at,
                    what,
                    attempt.delivery,
                    told,
                    as_json=as_json,
                    style="green" if good else "red",
                )

    def _say(
        self,
        at: Any,
        what: str,
        delivery: Delivery,
        attempt: dict[str, Any],
        *,
        as_json: bool,
        style: str,
    ) -> None:
        if as_json:
            what = "attempt" if attempt else "published"
            self.write_json_line({"what": what, "at": at} | attempt | _as_json(delivery))
            return
        line = Text(f"{exact(at)[11:]}  {delivery.pk}  ", "dim", end="")
        line.append_text(safe(f"{what}  ", style)).append("  ")
        line.append_text(safe(f"{_topic(delivery)} → {_subscription(delivery)}"))
        self.write_line(line)
        self.stdout.flush()

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


class _Place:
    """How far in a table it has looked. Ids are committed out of order: it looks back a little."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._last = model.objects.aggregate(last=Max("id"))["last"] or 0
        self._seen = set(
            model.objects.filter(id__gt=self._last - LATE).values_list("pk", flat=True)
        )

    def new(self, wanted: Wanted) -> Iterator[Any]:
        yield from after(wanted, self._model, self._last - LATE, self._seen)
        self._last = max(self._last, max(self._seen, default=0))
        self._seen = {one for one in self._seen if one > self._last - LATE}


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
