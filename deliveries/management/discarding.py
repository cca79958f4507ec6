"""What the commands that may discard held deliveries have in common."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.keeping.backlog import backlogs
from subscriptions.management.switching import SwitchingCommand
from subscriptions.models import Subscription


class DiscardingCommand(SwitchingCommand):
    """A command that can discard what was held: it says how many deliveries, and asks."""

    def add_discard_flags(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--discard-held",
            action="store_true",
            help="discard the deliveries that were held instead of sending them; says how many, "
            "and asks",
        )
        parser.add_argument("--yes", action="store_true", help="do not ask before discarding")

    def confirm_discard(self, subscriptions: Iterable[Subscription], options: Any) -> None:
        """Return if the held deliveries of these may be discarded; else `CommandError`."""
        if options["yes"]:
            return
        backlog = backlogs([subscription.pk for subscription in subscriptions])
        held = sum(counted.held for counted in backlog.values())
        if not held:
            return
        question = f"{held:,} held {'delivery' if held == 1 else 'deliveries'} will be discarded"
        if not sys.stdin.isatty():
            raise CommandError(f"{question}; nothing was done. Say --yes if you mean it.")
        self.stderr.write(f"{question}. Type yes to go on: ", ending="")
        if sys.stdin.readline().strip().lower() != "yes":
            raise CommandError("Nothing was done.")
