"""`manage.py pause`: send nothing to a subscription until it is resumed."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from subscriptions import circuit
from subscriptions.management.base import find_all
from subscriptions.management.switching import SwitchingCommand, add_names


class Command(SwitchingCommand):
    help = (
        "Pause subscriptions, active or tripped. What is pending is held until `resume`; events "
        "published in the meantime are not kept for them."
    )
    examples = ("billing", "billing audit", "billing --tenant acme")

    def add_arguments(self, parser: CommandParser) -> None:
        add_names(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        chosen = find_all(options["names"], options["tenant"])
        changed = circuit.pause([subscription.pk for subscription in chosen])
        self.report(
            chosen,
            changed,
            done=dict.fromkeys(("active", "tripped"), "paused; what was pending is held"),
            already=dict.fromkeys(("active", "paused", "tripped"), "already paused"),
            as_json=options["json"],
        )
