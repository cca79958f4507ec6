"""How times are written for people: the same on every page and in every table."""

from __future__ import annotations

from datetime import datetime

from django.utils import timezone


def exact(moment: datetime) -> str:
    """`2026-04-24 16:24:05`, in the server's time zone."""
    return f"{timezone.localtime(moment):%Y-%m-%d %H:%M:%S}"


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
