"""`manage.py api_keys`: which keys of the HTTP API there are."""

from __future__ import annotations

import textwrap
from typing import Any

from django.core.management.base import CommandParser

from api.models import ApiKey
from subscriptions.management.base import OperatorCommand, add_json_flag, when
from subscriptions.management.tables import NARROWEST, Column, Row


class Command(OperatorCommand):
    help = "List the keys of the HTTP API. A key itself is shown by `create_api_key` alone, once."
    examples = ("", "--all", "--json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--all", action="store_true", help="revoked and expired ones too")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        keys = [key for key in ApiKey.objects.all() if options["all"] or key.state == "live"]
        if options["json"]:
            self.write_json([_as_json(key) for key in keys])
            return
        if not keys:
            self.stdout.write("No key. `manage.py create_api_key` makes one.")
            return
        self.write_table(
            [
                *(Column("KEY"), Column("STATE"), Column("LAST USED")),
                *(Column("TENANT", shrinks=True), Column("NAME", shrinks=True)),
            ],
            [
                Row(
                    (key.prefix, key.state, when(key.last_used_at)[:16], key.bound_to, key.name),
                    textwrap.wrap(_may(key), max(self.width, NARROWEST) - 2),
                )
                for key in keys
            ],
        )


def _may(key: ApiKey) -> str:
    expires = f"; expires {when(key.expires_at)}" if key.expires_at else ""
    return f"{' '.join(key.scopes)}{expires}"


def _as_json(key: ApiKey) -> dict[str, Any]:
    return {
        "prefix": key.prefix,
        "name": key.name,
        "state": key.state,
        "scopes": key.scopes,
        "tenant": None if key.all_tenants else key.tenant,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "last_used_at": key.last_used_at,
        "revoked_at": key.revoked_at,
    }
