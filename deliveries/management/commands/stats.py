"""`manage.py stats`: how the sending goes, by the roll-ups."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone
from rich.text import Text

from deliveries.keeping.statistics import Row as Attempts
from deliveries.keeping.statistics import by_subscription
from deliveries.monitoring.rollups import Traffic, hourly, last_minutes, total
from subscriptions.management.base import (
    OperatorCommand,
    add_json_flag,
    add_tenant_flag,
    find_one,
    whole_number,
)
from subscriptions.management.tables import Column, Row, safe
from subscriptions.models import Subscription
from subscriptions.times import percent

# How many subscriptions a person is shown; `--json` has all.
SHOWN = 20
# The roll-ups of minutes are kept for so many hours, those of hours for 90 days by default.
MINUTES_FOR, HOURS_FOR = 8 * 24, 3660 * 24

_BARS = "▁▂▃▄▅▆▇█"


class Command(OperatorCommand):
    help = (
        "Say how many attempts succeeded and failed, how long they took, and for which "
        "subscriptions most failed: of the last day, or of --hours (the present hour is the last "
        "of them). With --subscription each hour of that one; with --tenant only what belongs to "
        "it. Figures are some five seconds old. ALL is for all subscriptions together, and goes "
        f"back {MINUTES_FOR} hours at most."
    )
    examples = ("", "--hours 1", "--subscription billing --hours 48", "--tenant acme --json")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--hours",
            type=whole_number(1, HOURS_FOR),
            default=24,
            metavar="N",
            help="how many hours, 24 by default",
        )
        parser.add_argument("--subscription", metavar="NAME", help="only this one, a name or an id")
        add_tenant_flag(parser, "only what belongs to this tenant; '' is the application itself")
        add_json_flag(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        hours, tenant = options["hours"], options["tenant"]
        if options["subscription"] is not None:
            one = find_one(options["subscription"], tenant)
            self._of_one(one, hours, as_json=options["json"])
            return
        rows = by_subscription(hours, tenant=tenant)
        whole = None
        if tenant is None:
            whole = total(last_minutes(60 * min(hours, MINUTES_FOR)))
        if options["json"]:
            self.write_json(
                {
                    "hours": hours,
                    "all": None if whole is None else _all_as_json(whole),
                    "subscriptions": [
                        {
                            "id": row.id,
                            "name": row.name,
                            "tenant": row.tenant,
                            **_as_json(row.succeeded, row.failed),
                        }
                        for row in rows
                    ],
                }
            )
            return
        if whole is not None:
            for line in _lines(whole):
                self.write_line(Text(line.replace("\xa0", " ")))
            self.stdout.write("")
        self._table(rows, hours)

    def _table(self, rows: list[Attempts], hours: int) -> None:
        if not rows:
            self.stdout.write(f"Nothing was attempted in the last {hours} h.")
            return
        shown = rows[:SHOWN]
        course = hourly([row.id for row in shown], min(hours, 24))
        some = any(row.tenant for row in rows)
        self.write_table(
            [
                Column("NAME", shrinks=True),
                *([Column("TENANT", shrinks=True)] if some else []),
                Column("ATTEMPTS", right=True),
                Column("FAILED", right=True),
                Column("SUCCESS", right=True),
                Column("FAILED BY HOUR"),
            ],
            [
                Row(
                    [
                        row.name or str(row.id),
                        *([row.tenant] if some else []),
                        row.succeeded + row.failed,
                        safe(f"{row.failed:,}", "red" if row.failed else ""),
                        percent(row.succeeded, row.succeeded + row.failed),
                        _sparkline([hour[2] for hour in course[row.id]]),
                    ]
                )
                for row in shown
            ],
        )
        if len(rows) > SHOWN:
            self.write_line(f"and {len(rows) - SHOWN:,} others, of which no more failed")

    def _of_one(self, one: Subscription, hours: int, *, as_json: bool) -> None:
        course = hourly([one.pk], hours)[one.pk]
        succeeded, failed = sum(hour[1] for hour in course), sum(hour[2] for hour in course)
        if as_json:
            self.write_json(
                {
                    "id": one.pk,
                    "name": one.name,
                    "tenant": one.tenant,
                    "hours": hours,
                    **_as_json(succeeded, failed),
                    "by_hour": [{"hour": hour[0], **_as_json(*hour[1:])} for hour in course],
                }
            )
            return
        self.write_line(
            safe(
                f"{one}: {succeeded + failed:,} attempts in {hours} h, {failed:,} failed, "
                f"{percent(succeeded, succeeded + failed)} succeeded"
            )
        )
        made = [hour for hour in course if hour[1] or hour[2]]
        if made:
            self.write_table(
                [
                    Column("HOUR"),
                    Column("ATTEMPTS", right=True),
                    Column("FAILED", right=True),
                    Column("SUCCESS", right=True),
                ],
                [
                    Row(
                        [
                            _hour(start),
                            good + bad,
                            safe(f"{bad:,}", "red" if bad else ""),
                            percent(good, good + bad),
                        ]
                    )
                    for start, good, bad in made
                ],
            )


def _hour(start: datetime) -> str:
    return f"{timezone.localtime(start):%Y-%m-%d %H:%M}"


def _sparkline(numbers: list[int]) -> str:
    """A bar for each; nothing where the number is 0, and as high as the highest of them."""
    highest = max(numbers)
    return "".join(
        _BARS[(number * len(_BARS) - 1) // highest] if number else "·" for number in numbers
    )


def _as_json(succeeded: int, failed: int) -> dict[str, Any]:
    made = succeeded + failed
    return {
        "succeeded": succeeded,
        "failed": failed,
        "success_rate": round(succeeded / made, 6) if made else None,
    }


def _all_as_json(whole: Traffic) -> dict[str, Any]:
    """Times in milliseconds; null where nothing was measured, or it took longer than is told."""
    return {
        "since": whole.start,
        "attempts": whole.attempts,
        "succeeded": whole.succeeded,
        "retried": whole.retried,
        "held": whole.held,
        "failed": whole.failed,
        "success_rate": None if whole.success_rate is None else round(whole.success_rate, 6),
        "attempt_ms_p50": _told(whole.attempt_percentile(0.5)),
        "attempt_ms_p99": _told(whole.attempt_percentile(0.99)),
        "arrival_ms_p50": _told(whole.arrival_percentile(0.5)),
        "arrival_ms_p99": _told(whole.arrival_percentile(0.99)),
    }


def _told(milliseconds: float | None) -> int | None:
    return None if milliseconds is None or math.isinf(milliseconds) else round(milliseconds)


def _lines(whole: Traffic) -> list[str]:
    return [
        f"ALL since {_hour(whole.start)}: {whole.attempts:,} attempts, "
        f"{percent(whole.succeeded, whole.attempts)} succeeded",
        f"  deliveries   succeeded {whole.succeeded:,}, tried again {whole.retried:,}, "
        f"held {whole.held:,}, failed {whole.failed:,}",
        f"  attempts     {_times(whole.attempt_percentile(0.5), whole.attempt_percentile(0.99))}",
        f"  to arrival   {_times(whole.arrival_percentile(0.5), whole.arrival_percentile(0.99))}",
    ]


def _times(half: float | None, most: float | None) -> str:
    if half is None or most is None:
        return "–"
    return f"p50 {_time(half)}, p99 {_time(most)}"


def _time(milliseconds: float) -> str:
    return "beyond the last bucket" if math.isinf(milliseconds) else f"{milliseconds:,.0f} ms"
