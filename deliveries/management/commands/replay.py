"""`manage.py replay`: send finished deliveries again."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db.models import Count, QuerySet

from deliveries.keeping.replay import (
    FINISHED,
    Chosen,
    Replayed,
    replay,
    replay_chosen,
    why_not,
    would_refuse,
)
from deliveries.models import Delivery
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    delivery_id,
    find_one,
    moment,
    one_line_text,
)
from subscriptions.management.tables import safe
from subscriptions.models import Subscription

# How many refusals are spelt out; the others are counted.
SHOWN = 20
# After how many batches a long replay says how far it is.
PROGRESS = 50


class Command(OperatorCommand):
    help = (
        "Send finished deliveries again, with the webhook-id they had: those with the given ids, "
        "or a subscription's. What belongs to a tripped or paused subscription is held until it "
        "is active again. If it is interrupted, the same command goes on with the rest."
    )
    examples = (
        "4711 4712",
        "--subscription billing --since 2h --dry-run",
        "--subscription billing --status failed --since 2026-01-31",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "ids", nargs="*", type=delivery_id, metavar="DELIVERY_ID", help="id of a delivery"
        )
        parser.add_argument("--subscription", metavar="NAME", help="name or id of a subscription")
        add_tenant_flag(
            parser,
            "with --subscription: whose subscription is named (default: the application's own)",
        )
        parser.add_argument(
            "--status",
            action="append",
            choices=[status.value for status in FINISHED],
            help="with --subscription: only these; repeatable (default: failed and discarded)",
        )
        parser.add_argument(
            "--since",
            type=moment,
            metavar="TIME",
            help="with --subscription: events published since then: 2h, 7d, 2026-01-31T12:00 (UTC)",
        )
        parser.add_argument(
            "--until",
            type=moment,
            metavar="TIME",
            help="with --subscription: events published before then",
        )
        parser.add_argument(
            "--topic",
            type=one_line_text,
            help="with --subscription: only of events with this topic",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="only say how many there are, of which subscription",
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        narrowed = any(
            options[name] is not None for name in ("tenant", "status", "since", "until", "topic")
        )
        if bool(options["ids"]) == (options["subscription"] is not None):
            raise CommandError("Give the ids of deliveries, or --subscription NAME.", returncode=2)
        if options["ids"] and narrowed:
            raise CommandError(
                "--tenant, --status, --topic, --since and --until go with --subscription.",
                returncode=2,
            )
        if options["ids"]:
            self._replay_ids(list(dict.fromkeys(options["ids"])), options)
        else:
            self._replay_subscription(options)

    def _replay_ids(self, ids: list[int], options: dict[str, Any]) -> None:
        if options["dry_run"]:
            refused = would_refuse(ids)
            sound = Delivery.objects.filter(pk__in=set(ids) - refused.keys())
            self._say_how_many(sound, refused, options)
            self._refuse(refused)
            return
        replayed, changed = replay(ids)
        refused = why_not([delivery_id for delivery_id in ids if delivery_id not in changed])
        self._report(replayed, refused, options)
        self._refuse(refused)

    def _refuse(self, refused: dict[int, str]) -> None:
        lines = [f"Delivery {number}: {reason}" for number, reason in list(refused.items())[:SHOWN]]
        if len(refused) > SHOWN:
            lines.append(f"… and {len(refused) - SHOWN} more that are not sent again.")
        if lines:
            raise CommandError("\n".join(lines))

    def _replay_subscription(self, options: dict[str, Any]) -> None:
        chosen = Chosen(
            find_one(options["subscription"], options["tenant"]),
            statuses=options["status"] or [Delivery.Status.FAILED, Delivery.Status.DISCARDED],
            since=options["since"],
            until=options["until"],
            topic=options["topic"],
        )
        if options["dry_run"]:
            self._say_how_many(chosen.rows(), {}, options)
            return
        total = Replayed()
        for number, total in enumerate(replay_chosen(chosen), start=1):
            if number % PROGRESS == 0:
                self.stderr.write(f"… {_deliveries(sum(total))} so far")
        self._report(total, {}, options)

    def _say_how_many(
        self, rows: QuerySet[Delivery], refused: dict[int, str], options: dict[str, Any]
    ) -> None:
        """Of what is there now; nothing is changed."""
        counted = rows.order_by().values_list("subscription_id").annotate(Count("pk"))
        counts = dict(counted)
        known = Subscription.objects.in_bulk(list(counts))
        names: Counter[str] = Counter()
        for key, number in counts.items():
            # A deleted one's are not sent again.
            if key in known:
                names[str(known[key])] += number
        total = names.total()
        if options["json"]:
            found = {"chosen": total, "by_subscription": names, "refused": _by_text(refused)}
            self.write_json(found)
            return
        self.stdout.write(f"{_deliveries(total)} would be sent again.")
        for name, number in sorted(names.items()):
            self.write_line(safe(f"{name}: {number:,}"), indent=2)

    def _report(self, replayed: Replayed, refused: dict[int, str], options: dict[str, Any]) -> None:
        if options["json"]:
            self.write_json(
                {
                    "pending": replayed.pending,
                    "held": replayed.held,
                    "refused": _by_text(refused),
                }
            )
            return
        self.stdout.write(f"{_deliveries(replayed.pending)} will be sent again now.")
        if replayed.held:
            self.stdout.write(
                f"{_deliveries(replayed.held)} held until the subscription is active again."
            )


def _by_text(refused: dict[int, str]) -> dict[str, str]:
    return {str(number): reason for number, reason in refused.items()}


def _deliveries(count: int) -> str:
    return f"{count:,} {'delivery' if count == 1 else 'deliveries'}"
