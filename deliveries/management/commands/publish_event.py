"""`manage.py publish_event`: publish an event from the shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries import EventConflict, publish
from deliveries.models import Delivery
from subscriptions.management.base import OperatorCommand, add_json_flag, add_tenant_flag


class Command(OperatorCommand):
    help = "Publish an event to every subscription whose patterns match its topic."
    examples = (
        """order.created --data '{"id": 42}'""",
        "order.created --data @order.json --id order-42",
        "order.created --data - < order.json",
        """order.created --data '{"id": 42}' --tenant acme""",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("topic", help="tokens separated by dots, such as order.created")
        parser.add_argument(
            "--data",
            required=True,
            metavar="JSON",
            help="the payload, a JSON object; @FILE reads it from a file, - from standard input",
        )
        parser.add_argument("--type", default="", dest="event_type", help="the event's type")
        parser.add_argument(
            "--id",
            dest="event_id",
            help="the event's id (default: a new one). If the same event was published with this "
            "id before, nothing happens",
        )
        add_tenant_flag(
            parser,
            "whose event it is (default: the application's own): only this tenant's subscriptions "
            "get it, and those for all tenants",
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            event = publish(
                options["topic"],
                _payload(options["data"]),
                event_type=options["event_type"],
                event_id=options["event_id"],
                tenant=options["tenant"] or "",
            )
        except EventConflict as error:
            raise CommandError(str(error)) from None
        except ValueError as error:
            raise CommandError(str(error), returncode=2) from None
        # Nothing was matched for one that was there already.
        known = event.matched is None
        statuses = list(Delivery.objects.filter(event_id=event.id).values_list("status", flat=True))
        held = sum(1 for status in statuses if status == Delivery.Status.HELD)
        if options["json"]:
            self.write_json(
                {
                    "id": event.id,
                    "topic": event.topic,
                    "tenant": event.tenant,
                    "already_published": known,
                    "subscriptions": len(statuses),
                    "held": held,
                }
            )
            return
        if known:
            self.stdout.write(f"Event {event.id} was published before; nothing was done.")
            return
        self.stdout.write(f"Published {event.topic} as {event.id}.")
        self.stdout.write(_matched(len(statuses), held))


def _matched(count: int, held: int) -> str:
    if not count:
        return "No active or tripped subscription matches."
    text = f"{count} subscription{'s match' if count > 1 else ' matches'}"
    return text + (f", {held} of them tripped: held until reset." if held else ".")


def _payload(data: str) -> Any:
    if data == "-":
        source, text = "standard input", sys.stdin.read()
    elif data.startswith("@"):
        source = data[1:]
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise CommandError(f"{source} cannot be read: {reason}.", returncode=2) from None
    else:
        source, text = "--data", data
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CommandError(
            f"{source} is not JSON: {error}. Give an object such as '{{\"id\": 42}}'.",
            returncode=2,
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice: parsers differ on which of its values counts."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:60]!r} is there twice in one object")
        found[key] = value
    return found
