"""`manage.py revoke_api_key`: a key of the HTTP API ends."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandError, CommandParser

from api import keys
from api.models import ApiKey
from subscriptions.management.base import OperatorCommand, add_json_flag


class Command(OperatorCommand):
    help = "Revoke keys of the HTTP API: from now on every process refuses them."
    examples = ("3fk29xq7", "whk_3fk29xq7")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "prefixes",
            nargs="+",
            metavar="KEY",
            help="the eight characters that `api_keys` lists; if one is unknown, nothing is done",
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        found = {prefix: _find(prefix) for prefix in options["prefixes"]}
        if unknown := [prefix for prefix, key in found.items() if key is None]:
            # A whole key that is given by mistake is not repeated.
            names = ", ".join(repr(prefix[:12]) for prefix in unknown)
            raise CommandError(
                f"There is no key {names}; nothing was done. `manage.py api_keys --all` lists them."
            )
        chosen = [key for key in found.values() if key is not None]
        changed = [key for key in chosen if keys.revoke(ApiKey.objects.filter(pk=key.pk))]
        if options["json"]:
            unchanged = [key.prefix for key in chosen if key not in changed]
            self.write_json({"changed": [key.prefix for key in changed], "unchanged": unchanged})
            return
        for key in chosen:
            done = "revoked" if key in changed else "already revoked"
            self.stdout.write(f"{key.prefix} ({key.name}): {done}")


def _find(text: str) -> ApiKey | None:
    """By the prefix, or by anything that begins like the key."""
    prefix = text.removeprefix("whk_").partition("_")[0]
    if not prefix.isprintable():
        return None
    return ApiKey.objects.filter(prefix=prefix).first()
