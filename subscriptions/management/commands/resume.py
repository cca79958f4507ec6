"""`manage.py resume`: send to paused subscriptions again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from subscriptions import circuit
from subscriptions.management.base import find_all
from subscriptions.management.switching import SwitchingCommand, add_discard_flag, add_names


class Command(SwitchingCommand):
    help = (
        "Resume paused subscriptions; what was held is sent. Tripped ones are refused: see why "
        "they tripped, then use reset_circuit."
    )
    examples = ("billing", "billing audit --discard-held")

    def add_arguments(self, parser: CommandParser) -> None:
        add_names(parser)
        add_discard_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = find_all(options["names"])
        if tripped := [one for one in chosen if one.state == "tripped"]:
            raise CommandError(
                "\n".join(f"{one.name} is tripped, not paused: {one.last_error}" for one in tripped)
                + "\nNothing was done. `manage.py reset_circuit` makes tripped ones active."
            )
        changed = circuit.reset(
            [one.pk for one in chosen if one.state == "paused"],
            discard_held=options["discard_held"],
        )
        held = "what was held is discarded" if options["discard_held"] else "what was held is sent"
        self.report(
            chosen,
            changed,
            done=f"resumed; {held}",
            already={"active": "already active", "paused": "somebody else resumed it just now"},
            as_json=options["json"],
        )
