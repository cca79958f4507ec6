"""What the commands for operators have in common.

Exit codes: 0 done or already so, 1 could not be done, 2 the command line or a value in it is not
valid. Errors are sentences on stderr. With `--json`, stdout holds JSON and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    DjangoHelpFormatter,
)
from django.db import InterfaceError, OperationalError, ProgrammingError, models
from psycopg import errors
from psycopg_pool import PoolTimeout
from rich.text import Text

from subscriptions import audit
from subscriptions.management.tables import UNCUT, WIDTH, Column, Row, table, text_line
from subscriptions.models import Subscription, find_subscription
from subscriptions.secrets.signing_secrets import InvalidSecret, parse
from subscriptions.tenants import InvalidTenant, validate_tenant
from subscriptions.times import parse_time

_EXIT_CODES = """exit codes:
  0  done, or already so
  1  could not be done; the reason is on standard error
  2  the command line, or a value in it, is not valid"""


class _Formatter(DjangoHelpFormatter):
    """Examples and exit codes keep their lines; all else is filled."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if _EXIT_CODES in text else super()._fill_text(text, width, indent)


class OperatorCommand(BaseCommand):
    """A command whose failures are sentences and whose help has examples."""

    examples: Sequence[str] = ()
    # They work, but a person who asks for help has other questions.
    suppressed_base_arguments: ClassVar[set[str]] = {  # type: ignore[misc]
        "--version",
        "--verbosity",
        "--settings",
        "--pythonpath",
        "--traceback",
        "--no-color",
        "--force-color",
        "--skip-checks",
    }

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        lines = [f"  {prog_name} {subcommand} {example}".rstrip() for example in self.examples]
        examples = "\n".join(["examples:", *lines, "", ""]) if lines else ""
        kwargs.setdefault("epilog", examples + _EXIT_CODES)
        return super().create_parser(
            prog_name, subcommand, **{"formatter_class": _Formatter, **kwargs}
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        self._colours = not options["no_color"] and "NO_COLOR" not in os.environ
        self._force_colours = options["force_color"]
        try:
            with audit.acting(audit.system_user, "command"):
                result = super().execute(*args, **options)
            self.stdout.flush()
            return result
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ENOSPC):
                raise
            # What Python still holds of the output goes nowhere, or it would complain at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno == errno.EPIPE:
                # The reader, `head` for example, has seen enough.
                raise SystemExit(1) from None
            raise CommandError(
                f"The output cannot be written: {error.strerror}. What was asked for may be done "
                "all the same."
            ) from None
        except KeyboardInterrupt:
            # As the shell says it of a program that ended by this signal.
            raise CommandError("Interrupted.", returncode=128 + signal.SIGINT) from None
        except ProgrammingError as error:
            if isinstance(error.__cause__, errors.UndefinedTable | errors.UndefinedColumn):
                raise CommandError(
                    "The database has no tables for this version yet; run `manage.py migrate`."
                ) from error
            raise
        except (OperationalError, InterfaceError, PoolTimeout) as error:
            raise CommandError(f"The database cannot be used: {one_line(error)}") from error
        except ImproperlyConfigured as error:
            raise CommandError(str(error)) from error

    def write_table(self, columns: Sequence[Column], rows: Iterable[Row]) -> None:
        """On a terminal as wide as that is, and coloured; else plain and uncut."""
        self.stdout.write(table(columns, rows, width=self.width, colours=self.colours))

    def write_line(self, text: str | Text, *, indent: int = 0) -> None:
        """One line of it, in its colours; what is too long for the terminal ends with `…`."""
        self.stdout.write(text_line(text, width=self.width, colours=self.colours, indent=indent))

    @property
    def width(self) -> int:
        """Characters in a line of the output: COLUMNS, or the terminal's, or `UNCUT`."""
        columns = os.environ.get("COLUMNS", "")
        if columns.isascii() and columns.isdigit() and int(columns):
            return int(columns)
        if not self.stdout.isatty():
            return UNCUT
        # A terminal that does not know its size says 0.
        return os.get_terminal_size(self.stdout.fileno()).columns or WIDTH

    @property
    def colours(self) -> bool:
        return self._colours and (self._force_colours or self.stdout.isatty())

    def write_json(self, value: Any) -> None:
        self.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))

    def write_json_line(self, value: Any) -> None:
        """One of many objects: a line, which is there at once."""
        self.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain))
        self.stdout.flush()


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def one_line(error: object) -> str:
    return " ".join(str(error).split())


def add_json_flag(parser: CommandParser) -> None:
    parser.add_argument("--json", action="store_true", help="answer in JSON, for scripts")


def add_tenant_flag(parser: CommandParser, help_text: str = "") -> None:
    parser.add_argument(
        "--tenant",
        type=tenant_argument,
        metavar="TENANT",
        help=help_text or "whose subscription is named (default: the application's own)",
    )


def tenant_argument(text: str) -> str:
    """An argparse type: a tenant; the empty text is the application itself."""
    try:
        return validate_tenant(text)
    except InvalidTenant as error:
        raise ArgumentTypeError(str(error)) from None


def of_tenant(
    chosen: models.QuerySet[Subscription], tenant: str | None
) -> models.QuerySet[Subscription]:
    """Those of this tenant; None: of every one."""
    return chosen if tenant is None else chosen.filter(tenant=tenant)


def find_one(name_or_id: str, tenant: str | None) -> Subscription:
    """The subscription, or `CommandError`."""
    try:
        return find_subscription(name_or_id, tenant)
    except Subscription.DoesNotExist as error:
        raise CommandError(str(error)) from None


def whose(tenant: str | None) -> str:
    """To be put after "No subscription", where those of a tenant alone were looked at."""
    if tenant is None:
        return ""
    return f" of the tenant {tenant!r}" if tenant else " of the application itself"


def find_all(names_or_ids: Iterable[str], tenant: str | None) -> list[Subscription]:
    """The subscriptions, each once. `CommandError` for unknown ones, before anything is done."""
    found: dict[Any, Subscription] = {}
    unknown = []
    for name_or_id in names_or_ids:
        try:
            subscription = find_subscription(name_or_id, tenant)
            found[subscription.pk] = subscription
        except Subscription.DoesNotExist as error:
            unknown.append(str(error))
    if unknown:
        raise CommandError("\n".join([*unknown, "Nothing was done."]))
    return list(found.values())


def secret_argument(text: str) -> str:
    """An argparse type: a signing secret; `-` reads one from standard input."""
    try:
        return parse(sys.stdin.readline() if text == "-" else text)
    except InvalidSecret as error:
        raise ArgumentTypeError(str(error)) from None


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """An argparse type: a whole number from `minimum` to `maximum`."""

    def parse_number(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not minimum <= int(text) <= maximum:
            raise ArgumentTypeError(f"{text!r} is not a whole number from {minimum} to {maximum}")
        return int(text)

    return parse_number


def one_line_text(text: str) -> str:
    """An argparse type: printable text; the database takes no NUL, and no half of a character."""
    if not text.isprintable():
        raise ArgumentTypeError(f"{text[:80]!a} has something in it that does not print")
    return text


def seconds(text: str) -> float:
    """An argparse type: seconds, from 0 to a year."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 366 * 86400:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to a year")
    return value


def moment(text: str) -> datetime:
    """An argparse type: a time ago (`90s`, `15m`, `2h`, `7d`) or ISO 8601, UTC unless it says."""
    try:
        return parse_time(text, UTC)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def delivery_id(text: str) -> int:
    """An argparse type: the id of a delivery."""
    if not (text.isascii() and text.isdigit()) or int(text) >= 2**63:
        raise ArgumentTypeError(f"{text[:80]!r} is not the id of a delivery, which is a number")
    return int(text)


def sentence(error: ValidationError) -> str:
    """All messages of a validation error, each with its field's name."""
    if not hasattr(error, "error_dict"):
        return " ".join(error.messages)
    return "\n".join(
        f"{field}: {message}" if field != "__all__" else message
        for field, messages in error.message_dict.items()
        for message in messages
    )


def when(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC") if moment else "never"
