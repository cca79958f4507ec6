"""What the commands that change a subscription's state have in common."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from django.core.management.base import CommandParser

from subscriptions.management.base import OperatorCommand, add_json_flag, add_tenant_flag
from subscriptions.models import Subscription


def add_names(parser: CommandParser, *, optional: bool = False, tenant: str = "") -> None:
    """NAME…, `--tenant`, whose help is `tenant` unless it is empty, and `--json`."""
    parser.add_argument(
        "names",
        nargs="*" if optional else "+",
        metavar="NAME",
        help="name or id of a subscription; if one is unknown, nothing is done",
    )
    add_tenant_flag(parser, tenant)
    add_json_flag(parser)


class SwitchingCommand(OperatorCommand):
    """Reports what was changed and what was already so."""

    def report(
        self,
        subscriptions: Iterable[Subscription],
        changed_ids: Iterable[Any],
        *,
        done: dict[str, str],
        already: dict[str, str],
        as_json: bool,
    ) -> None:
        """`done` says what was changed and `already` what was left alone, by the state before."""
        changed = set(changed_ids)
        subscriptions = sorted(subscriptions, key=attrgetter("tenant", "name"))
        if as_json:
            by_change: dict[bool, list[Subscription]] = {True: [], False: []}
            for subscription in subscriptions:
                by_change[subscription.pk in changed].append(subscription)
            self.write_json(
                {
                    "changed": [str(subscription) for subscription in by_change[True]],
                    "unchanged": [
                        {"name": str(subscription), "state": subscription.state}
                        for subscription in by_change[False]
                    ],
                }
            )
            return
        for subscription in subscriptions:
            if subscription.pk in changed:
                self.stdout.write(f"{subscription}: {done[subscription.state]}")
            else:
                self.stdout.write(f"{subscription}: {already[subscription.state]}")
