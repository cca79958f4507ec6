"""`manage.py matching`: whom an event of a topic would reach, and why not others."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.publishing.reach import reach
from subscriptions.management.base import OperatorCommand, add_json_flag, add_tenant_flag
from subscriptions.management.tables import Column, Row, safe
from subscriptions.topics.rules import InvalidTopic


class Command(OperatorCommand):
    help = (
        "Say which subscriptions an event of this topic would reach if it were published now, and "
        "why the nearest others do not get it. Nothing is published."
    )
    examples = ("order.created", "order.created --tenant acme --json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("topic", help="tokens separated by dots, such as order.created")
        add_tenant_flag(parser, "whose event it would be (default: the application's own)")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            found = reach(options["topic"], options["tenant"] or "")
        except InvalidTopic as error:
            raise CommandError(str(error), returncode=2) from None
        if options["json"]:
            self.write_json(
                {
                    "topic": found.topic,
                    "tenant": found.tenant,
                    "more": found.more,
                    "reached": [
                        {
                            "id": one.subscription.pk,
                            "name": one.subscription.name,
                            "tenant": one.subscription.tenant,
                            "state": one.subscription.state,
                            "patterns": one.patterns,
                            "becomes": one.becomes or None,
                        }
                        for one in found.reached
                    ],
                    "missed": [
                        {
                            "id": one.subscription.pk,
                            "name": one.subscription.name,
                            "tenant": one.subscription.tenant,
                            "pattern": one.pattern or None,
                            "why": one.why,
                        }
                        for one in found.missed
                    ],
                }
            )
            return
        if found.reached:
            self.write_table(
                [Column("WOULD BE"), Column("SUBSCRIPTION", shrinks=True), Column("BY")],
                [
                    Row(
                        [
                            one.becomes or safe("nothing, it is paused", "yellow"),
                            str(one.subscription),
                            one.patterns[0] if one.patterns else None,
                        ]
                    )
                    for one in found.reached
                ],
            )
        else:
            self.stdout.write("It would reach no subscription.")
        if found.more:
            self.stdout.write("… and more that are not shown.")
        if found.missed:
            self.write_line("Not reached, the nearest first:")
            for missed in found.missed:
                self.write_line(
                    safe(f"{missed.subscription}, {missed.pattern}: {missed.why}"), indent=2
                )
