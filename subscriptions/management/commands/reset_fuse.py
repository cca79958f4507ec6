"""`manage.py reset_fuse`: circuits may trip again."""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from subscriptions.circuit import fuse
from subscriptions.management.base import OperatorCommand, add_json_flag


class Command(OperatorCommand):
    help = (
        "Reset the fuse, so that circuits trip again. It has blown because too many receivers "
        "could not be reached at the same time; an answer of one of them resets it by itself, "
        "and so does a success of anybody after some minutes (WEBHOOKS_FUSE_WINDOW). "
        "Reset it if you know that the fault is theirs and not our own network's."
    )
    examples = ("",)

    def add_arguments(self, parser: CommandParser) -> None:
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        was_blown = fuse.blown()
        fuse.reset()
        if options["json"]:
            self.write_json({"reset": was_blown})
        elif was_blown:
            self.stdout.write("The fuse is reset: circuits may trip as before.")
        else:
            self.stdout.write("The fuse has not blown; nothing to reset.")
