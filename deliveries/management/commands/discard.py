"""`manage.py discard`: end single deliveries that are pending or held."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.keeping.discard import discard
from deliveries.models import Delivery
from subscriptions.management.base import OperatorCommand, add_json_flag, delivery_id


class Command(OperatorCommand):
    help = (
        "Discard deliveries that are pending or held: they are not sent. A request that is on its "
        "way may still succeed. `replay` takes it back."
    )
    examples = ("4711 4712",)

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "ids", nargs="+", type=delivery_id, metavar="DELIVERY_ID", help="id of a delivery"
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        ids = list(dict.fromkeys(options["ids"]))
        discarded = discard(ids)
        known = dict(Delivery.objects.filter(pk__in=ids).values_list("pk", "status"))
        refused = {
            one: f"it is {known[one]} already" if one in known else "there is no such delivery"
            for one in ids
            if one not in discarded
        }
        if options["json"]:
            self.write_json({"discarded": sorted(discarded), "refused": refused})
        elif discarded:
            self.stdout.write(f"Discarded: {len(discarded):,}")
        if refused:
            raise CommandError("\n".join(f"Delivery {one}: {why}" for one, why in refused.items()))
