"""`manage.py send_test`: what does this receiver say to a signed request?"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from deliveries.sending.send_test import TEST_TOPIC, send_test
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
)
from subscriptions.topics.rules import InvalidTopic


class Command(OperatorCommand):
    help = (
        "Send one signed test event to a subscription, at once and once, and show the answer. "
        "Works on paused and tripped ones too; only the audit records it. Exit code 0 for an "
        "answer of 2xx, 1 for all else."
    )
    examples = ("billing", "billing --topic order.created --json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="name or id of the subscription")
        parser.add_argument(
            "--topic", default=TEST_TOPIC, help="the test event's topic (%(default)s)"
        )
        add_tenant_flag(parser)
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        subscription = find_one(options["name"], options["tenant"])
        try:
            tested = send_test(subscription, topic=options["topic"])
        except InvalidTopic as error:
            raise CommandError(str(error), returncode=2) from None
        if options["json"]:
            self.write_json(
                {
                    "name": str(subscription),
                    "succeeded": tested.succeeded,
                    "event_id": tested.event_id,
                    "status_code": tested.status_code,
                    "duration_ms": tested.duration_ms,
                    "error": tested.error,
                    "remote_address": tested.remote_address,
                    "response_body": tested.response_body,
                }
            )
        elif tested.succeeded:
            self.stdout.write(f"{subscription}: {tested}")
        if not tested.succeeded:
            raise CommandError(f"{subscription}: {tested}")
