"""`manage.py rotate_keys`: encrypt all signing secrets under the newest key."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandError, CommandParser

from subscriptions.management.base import OperatorCommand, add_json_flag
from subscriptions.secrets import stored


class Command(OperatorCommand):
    help = (
        "Encrypt every signing secret under the first key of WEBHOOKS_SECRET_KEYS, so that older "
        "keys can go. First put the new key in front of the others and restart every process. The "
        "secrets themselves stay as they are. May run under load, be ended, and run again. Ends "
        "with 1 while older keys are still needed."
    )
    examples = ("", "--check   # change nothing", "--json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check", action="store_true", help="only say whether the older keys can go"
        )
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        changed = 0 if options["check"] else stored.re_encrypt()
        # Counted afresh: somebody may have stored secrets meanwhile.
        keys = stored.count()
        done = not keys.older and not keys.unreadable
        if options["json"]:
            self.write_json({"changed": changed, **asdict(keys), "old_keys_can_go": done})
        else:
            if not options["check"]:
                self.stdout.write(f"Re-encrypted:         {changed:,}")
            self.stdout.write(f"Under the newest key: {keys.newest:,}")
            self.stdout.write(f"Under an older key:   {keys.older:,}")
            if done:
                self.stdout.write(
                    "The older keys can go from WEBHOOKS_SECRET_KEYS, once every process runs\n"
                    "with the newest one in front."
                )
        if keys.unreadable:
            raise CommandError(
                f"Secrets in use that no key can decrypt: {keys.unreadable:,}. Put the key "
                "that made them back into WEBHOOKS_SECRET_KEYS, or rotate these subscriptions' "
                "secrets (`manage.py check --database default`)."
            )
        if keys.older:
            raise CommandError(
                "The older keys are still needed. "
                + ("Run it without --check." if options["check"] else "Run it again.")
            )
