"""`manage.py rotate_secret`: a new signing secret, while the old one stays valid for a while."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.db.models import Max

from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
    seconds,
    secret_argument,
    sentence,
    when,
)


class Command(OperatorCommand):
    help = (
        "Give a subscription a new signing secret and show it once. Until the old one ends, "
        "requests are signed with both, so that the receiver can change over."
    )
    examples = ("billing", "billing --overlap 3600", "billing --overlap 0   # it has leaked")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="name or id of the subscription")
        parser.add_argument(
            "--secret",
            type=secret_argument,
            metavar="whsec_…",
            help="use this secret instead of a new one; - reads it from standard input, where no "
            "list of processes shows it",
        )
        parser.add_argument(
            "--overlap",
            type=seconds,
            metavar="SECONDS",
            help="how long the old secret stays valid (default: WEBHOOKS_SECRET_OVERLAP)",
        )
        add_tenant_flag(parser)
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        subscription = find_one(options["name"], options["tenant"])
        old = [secret.pk for secret in subscription.secrets.live()]
        try:
            secret = subscription.rotate_secret(options["secret"], overlap=options["overlap"])
        except ValidationError as error:
            raise CommandError(sentence(error)) from None
        ends = subscription.secrets.filter(pk__in=old).aggregate(ends=Max("expires_at"))["ends"]
        shown = secret if options["secret"] is None else None
        if options["json"]:
            self.write_json({"name": str(subscription), "secret": shown, "old_ends_at": ends})
            return
        self.stdout.write(f"{str(subscription)!r} has a new signing secret.")
        if shown is None:
            self.stdout.write("  secret    as given")
        else:
            self.stdout.write(f"  secret    {shown}")
        if ends is not None:
            self.stdout.write(f"  old ends  {when(ends)}")
        if shown is not None:
            self.stdout.write("The secret is not shown again: hand it to the receiver now.")
