"""`manage.py add_subscription`: a new receiver."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser

from subscriptions.conf import conf
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    secret_argument,
    sentence,
    whole_number,
)
from subscriptions.models import Subscription, create_subscription


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ArgumentTypeError(f"{text[:80]!r} is not a header; write 'Name: value'")
    return name.strip(), value.strip()


class Command(OperatorCommand):
    help = (
        "Add a subscription: a URL that gets every event whose topic matches one of the patterns. "
        "Its signing secret is generated and shown once."
    )
    examples = (
        "billing https://example.com/a --pattern 'order.*'",
        "audit https://example.com/b --pattern '>' --json",
        "bills https://a.example/ --pattern x --tenant acme",
        "old https://a.example/ --pattern x --secret - < key",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "name", help="a name for operators and commands; unique within its tenant"
        )
        parser.add_argument("url", help="where events are sent: http:// or https://")
        parser.add_argument(
            "--pattern",
            action="append",
            default=[],
            metavar="P",
            dest="patterns",
            help="a topic pattern, such as order.* (one token) or order.> (all below); repeatable",
        )
        parser.add_argument(
            "--group",
            action="append",
            default=[],
            metavar="NAME",
            dest="groups",
            help="the patterns of a group (WEBHOOKS_TOPIC_GROUPS); repeatable",
        )
        parser.add_argument(
            "--secret",
            type=secret_argument,
            metavar="whsec_…",
            help="use this secret instead of a new one; - reads it from standard input, where no "
            "list of processes shows it",
        )
        parser.add_argument(
            "--header",
            action="append",
            default=[],
            type=_header,
            metavar="'K: V'",
            dest="headers",
            help="a header to add to each request; repeatable",
        )
        add_tenant_flag(
            parser, "whose subscription it is, for good (default: the application's own)"
        )
        parser.add_argument(
            "--all-tenants",
            action="store_true",
            help="send it the events of every tenant; not with --tenant",
        )
        parser.add_argument(
            "--max-in-flight",
            type=whole_number(1, 1000),
            metavar="N",
            help="requests in flight at a time, at most (default: WEBHOOKS_MAX_IN_FLIGHT)",
        )
        parser.add_argument(
            "--recovery",
            choices=Subscription.Recovery.values,
            help="once tripped: probe it, or wait for you (default: WEBHOOKS_CIRCUIT_RECOVERY)",
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        fields = {
            name: options[name]
            for name in ("max_in_flight", "recovery")
            if options[name] is not None
        }
        headers = dict(options["headers"])
        if len(headers) < len(options["headers"]):
            raise CommandError("A header is given twice; join its values.", returncode=2)
        try:
            subscription, secret = create_subscription(
                name=options["name"],
                url=options["url"],
                topic_patterns=_patterns(options["patterns"], options["groups"]),
                secret=options["secret"],
                headers=headers,
                tenant=options["tenant"] or "",
                all_tenants=options["all_tenants"],
                **fields,
            )
        except ValidationError as error:
            # A name that is taken is a name that could have been given.
            codes = {each.code for errors in error.error_dict.values() for each in errors}
            raise CommandError(
                sentence(error), returncode=1 if codes == {"unique"} else 2
            ) from None
        shown = secret if options["secret"] is None else None
        if options["json"]:
            self.write_json(
                {
                    "id": subscription.pk,
                    "tenant": subscription.tenant,
                    "all_tenants": subscription.all_tenants,
                    "name": subscription.name,
                    "url": subscription.url,
                    "topic_patterns": subscription.topic_patterns,
                    "secret": shown,
                }
            )
            return
        self.stdout.write(f"Added {subscription.name!r}.")
        if subscription.tenant or subscription.all_tenants:
            self.stdout.write(f"  tenant    {subscription.tenant or 'the events of all tenants'}")
        self.stdout.write(f"  id        {subscription.pk}")
        self.stdout.write(f"  url       {subscription.url}")
        self.stdout.write(f"  patterns  {'  '.join(subscription.topic_patterns)}")
        if shown is None:
            self.stdout.write("  secret    as given")
        else:
            self.stdout.write(f"  secret    {shown}")
            self.stdout.write("The secret is not shown again: hand it to the receiver now.")


def _patterns(patterns: list[str], groups: list[str]) -> list[str]:
    known = conf().topic_groups
    chosen = list(patterns)
    for name in groups:
        if name not in known:
            names = ", ".join(map(repr, known)) or "none; WEBHOOKS_TOPIC_GROUPS defines them"
            raise CommandError(
                f"There is no group {name!r}. The groups are: {names}.", returncode=2
            )
        chosen += known[name]
    if not chosen:
        raise CommandError(
            "No topic pattern is given; add --pattern or --group (--pattern '>' is everything).",
            returncode=2,
        )
    return list(dict.fromkeys(chosen))
