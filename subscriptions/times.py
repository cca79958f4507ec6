"""How times and shares are written for people: the same on every page and in every table."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo

from django.utils import timezone


def exact(moment: datetime, unlike: datetime | None = None) -> str:
    """`2026-04-24 16:24:05`, in the server's time zone; with milliseconds (`16:24:05.123`) if
    `unlike` is in the same second."""
    whole = f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"
    if unlike is not None and exact(unlike) == whole:
        return f"{whole}.{moment.microsecond // 1000:03}"
    return whole


def age(moment: datetime) -> str:
    """`5 min ago`, `just now`; `in 5 min` of what is yet to come."""
    seconds = (timezone.now() - moment).total_seconds()
    if seconds <= -1:
        return f"in {span(-seconds)}"
    return "just now" if seconds < 1 else f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """`12 s`, `5 min`, `3 h` or `2 d`: whole ones, rounded down."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 1:.0f} s"


def percent(part: int, whole: int) -> str:
    """`99.33 %`, rounded down; 100 % is all of them, 0 % none. A dash if there are none at all."""
    if not whole:
        return "–"
    if part in (0, whole):
        return "100\u00a0%" if part else "0\u00a0%"
    return f"{max(1, 10_000 * part // whole) / 100:.2f}\u00a0%"


_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_time(text: str, zone: tzinfo) -> datetime:
    """A time ago (`90s`, `15m`, `2h`, `7d`) or ISO 8601, in `zone` unless it says. ValueError."""
    try:
        if match := _AGO.fullmatch(text):
            return timezone.now() - timedelta(**{_UNITS[match[2]]: int(match[1])})
        value = datetime.fromisoformat(text)
        return value if value.tzinfo else value.replace(tzinfo=zone)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text[:80]!r} is not a time; write 2h (two hours ago), 7d or 2026-01-31T12:00"
        ) from None
