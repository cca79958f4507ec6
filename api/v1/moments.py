"""Moments of time, as the API takes them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

_MOMENT = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def _moment(value: Any) -> datetime:
    try:
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            return _in_utc(datetime.fromisoformat(value.upper()))
    except ValueError:
        pass
    raise PydanticCustomError(
        "moment", "Give a time with its zone as text, such as 2026-01-31T12:00:00Z (RFC 3339)."
    )


def _in_utc(moment: datetime) -> datetime:
    """PostgreSQL knows no zone of more than 16 hours, and Python no time before its first year."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return (datetime.min if moment.year == 1 else datetime.max).replace(tzinfo=UTC)


Moment = Annotated[datetime, BeforeValidator(_moment)]
