"""`manage.py reset_circuit`: send to tripped subscriptions again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.management.discarding import DiscardingCommand
from subscriptions import circuit
from subscriptions.management.base import find_all, of_tenant, whose
from subscriptions.management.switching import add_names
from subscriptions.models import Subscription


class Command(DiscardingCommand):
    help = (
        "Reset the circuit of tripped subscriptions: they are active again, and what was held is "
        "sent, gently at first. Active ones that are backing off are sent to at once. Paused ones "
        "are left as they are."
    )
    examples = ("billing", "billing audit --discard-held", "--all", "--all --tenant acme")

    def add_arguments(self, parser: CommandParser) -> None:
        add_names(
            parser,
            optional=True,
            tenant="whose subscription is named (default: the application's own); with --all: only "
            "those of this tenant",
        )
        parser.add_argument("--all", action="store_true", help="every tripped subscription")
        self.add_discard_flags(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["names"]) == options["all"]:
            raise CommandError(
                "Give the names of subscriptions, or --all for every tripped one.", returncode=2
            )
        if options["all"]:
            chosen = list(of_tenant(Subscription.objects.tripped(), options["tenant"]))
        else:
            chosen = find_all(options["names"], options["tenant"])
        tripped = [subscription for subscription in chosen if subscription.state == "tripped"]
        if options["discard_held"]:
            self.confirm_discard(tripped, options)
        changed = circuit.reset(
            [subscription.pk for subscription in tripped], discard_held=options["discard_held"]
        )
        changed += circuit.reset_backoff(
            [subscription.pk for subscription in chosen if subscription.state == "active"]
        )
        if not chosen and not options["json"]:
            self.stdout.write(f"No subscription{whose(options['tenant'])} is tripped.")
            return
        held = "what was held is discarded" if options["discard_held"] else "what was held is sent"
        self.report(
            chosen,
            changed,
            done={
                "tripped": f"reset; {held}",
                "active": "its backoff has ended; what is due is sent",
            },
            already={
                "active": "already active; nothing to reset",
                "paused": "paused, not tripped; `manage.py resume` makes it active",
                "tripped": "somebody else reset it just now",
            },
            as_json=options["json"],
        )
