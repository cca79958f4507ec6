"""`manage.py prune`: the housekeeping that beat runs, now."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from deliveries.keeping import housekeeping
from subscriptions.management.base import OperatorCommand, add_json_flag


class Command(OperatorCommand):
    help = (
        "Discard deliveries that were held for too long, and remove finished deliveries and "
        "events that are past their time (WEBHOOKS_HOLD_DAYS, WEBHOOKS_KEEP_SUCCEEDED_DAYS, "
        "WEBHOOKS_KEEP_FAILED_DAYS). Beat does this by itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        expired = housekeeping.expire_held()
        deliveries, events = housekeeping.prune()
        if options["json"]:
            self.write_json(
                {"expired": expired, "removed_deliveries": deliveries, "removed_events": events}
            )
            return
        self.stdout.write(f"Held for too long, discarded:  {expired:,}")
        self.stdout.write(f"Deliveries removed:            {deliveries:,}")
        self.stdout.write(f"Events removed:                {events:,}")
