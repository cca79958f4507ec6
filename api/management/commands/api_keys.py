"""`manage.py api_keys`: which keys of the HTTP API there are."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from api.models import ApiKey
from subscriptions.management.base import OperatorCommand, add_json_flag, when


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
        self.stdout.write(_row("KEY", "STATE", "LAST USED", "TENANT", "NAME"))
        for key in keys:
            used = when(key.last_used_at)
            self.stdout.write(_row(key.prefix, key.state, used[:16], key.bound_to, key.name))
            expires = f"; expires {when(key.expires_at)}" if key.expires_at else ""
            self.stdout.write(f"          {' '.join(key.scopes)}{expires}")


def _row(prefix: str, state: str, used: str, tenant: str, name: str) -> str:
    return f"{prefix:<9} {state:<8} {used:<17} {tenant:<15} {name}"


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
