"""`manage.py create_api_key`: a key for a program that uses the HTTP API."""

from __future__ import annotations

import textwrap
from datetime import timedelta
from itertools import zip_longest
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from api.keys import create_key
from api.models import SCOPES
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    sentence,
    when,
    whole_number,
)
from subscriptions.management.tables import WIDTH


class Command(OperatorCommand):
    help = (
        "Make a key for the HTTP API. It is shown once. A key is bound to one tenant, or to none: "
        "say which."
    )
    examples = (
        "shop --scope events:write --all-tenants",
        "acme --scope events:write --tenant acme",
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="which program has this key, for people to read")
        parser.add_argument(
            "--scope",
            action="append",
            required=True,
            choices=list(SCOPES),
            metavar="SCOPE",
            dest="scopes",
            help="what it may be used for; repeatable. "
            + "; ".join(f"{scope}: {what}" for scope, what in SCOPES.items()),
        )
        bound = parser.add_mutually_exclusive_group(required=True)
        bound.add_argument(
            "--tenant", help="the tenant it is bound to; empty: the application itself"
        )
        bound.add_argument("--all-tenants", action="store_true", help="bound to none: it sees all")
        parser.add_argument(
            "--expires-in",
            type=whole_number(1, 3650),
            metavar="DAYS",
            help="days until it ends (default: it does not)",
        )
        add_json_flag(parser)

    @sensitive_variables()
    def handle(self, *args: Any, **options: Any) -> None:
        days = options["expires_in"]
        try:
            key, text = create_key(
                options["name"],
                options["scopes"],
                tenant=options["tenant"] or "",
                all_tenants=options["all_tenants"],
                expires_at=timezone.now() + timedelta(days=days) if days else None,
            )
        except ValidationError as error:
            raise CommandError(sentence(error), returncode=2) from None
        if options["json"]:
            self.write_json(
                {
                    "prefix": key.prefix,
                    "name": key.name,
                    "scopes": key.scopes,
                    "tenant": None if key.all_tenants else key.tenant,
                    "expires_at": key.expires_at,
                    "key": text,
                }
            )
            return
        self.stdout.write(f"Made the key {key.prefix} for {key.name!r}.")
        for label, line in zip_longest(
            ["scopes"], textwrap.wrap("  ".join(key.scopes), WIDTH - 11), fillvalue=""
        ):
            self.stdout.write(f"  {label:9}{line}")
        self.stdout.write(f"  tenant   {key.bound_to}")
        self.stdout.write(f"  expires  {when(key.expires_at)}")
        self.stdout.write(f"  key      {text}")
        self.stdout.write("The key is not shown again: hand it to the program now.")
