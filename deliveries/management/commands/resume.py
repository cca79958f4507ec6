"""`manage.py resume`: send to paused subscriptions again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.management.discarding import DiscardingCommand
from subscriptions import circuit
from subscriptions.management.base import find_all
from subscriptions.management.switching import add_names


class Command(DiscardingCommand):
    help = (
        "Resume paused subscriptions; what was held is sent. Tripped ones are refused: see why "
        "they tripped, then use reset_circuit."
    )
    examples = ("billing", "billing audit --discard-held")

    def add_arguments(self, parser: CommandParser) -> None:
        add_names(parser)
        self.add_discard_flags(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = find_all(options["names"], options["tenant"])
        if tripped := [subscription for subscription in chosen if subscription.state == "tripped"]:
            raise CommandError(
                "\n".join(
                    f"{subscription} is tripped, not paused: {subscription.last_error}"
                    for subscription in tripped
                )
                + "\nNothing was done. `manage.py reset_circuit` makes tripped ones active."
            )
        paused = [subscription for subscription in chosen if subscription.state == "paused"]
        if options["discard_held"]:
            self.confirm_discard(paused, options)
        changed = circuit.reset(
            [subscription.pk for subscription in paused], discard_held=options["discard_held"]
        )
        held = "what was held is discarded" if options["discard_held"] else "what was held is sent"
        self.report(
            chosen,
            changed,
            done={"paused": f"resumed; {held}"},
            already={"active": "already active", "paused": "somebody else resumed it just now"},
            as_json=options["json"],
        )
