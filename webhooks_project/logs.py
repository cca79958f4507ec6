"""How the log is written: by structlog, for lines of ours, of Django and of Celery alike.

As JSON, an object on a line, or to be read on a terminal. No traceback shows the values of
variables: secrets are among them. What Django refused (a status below 500) has none: it is no fault
of ours.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import structlog

from deliveries.monitoring.lines import Attempts

FORMATS = ("json", "console")

_SHARED: list[Callable[..., Any]] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def wanted_format() -> str:
    """What `WEBHOOKS_LOG_FORMAT` says: by default `console` on a terminal, and else `json`.

    Raises `ValueError` with what would be right.
    """
    chosen = os.environ.get("WEBHOOKS_LOG_FORMAT", "")
    if chosen not in ("", *FORMATS):
        raise ValueError(f"WEBHOOKS_LOG_FORMAT is {chosen!r}; it must be json or console.")
    return chosen or ("console" if sys.stderr.isatty() else "json")


class JsonLines(structlog.stdlib.ProcessorFormatter):
    def __init__(self) -> None:
        super().__init__(
            foreign_pre_chain=_SHARED,
            processors=[
                self.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(partial(json.dumps, ensure_ascii=False)),
            ],
        )

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Attempts):
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            return record.msg.json_lines(record.levelname.lower(), at)
        return super().format(_without_needless_traceback(record))


class ConsoleLines(structlog.stdlib.ProcessorFormatter):
    def __init__(self) -> None:
        self._renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
            pad_event_to=0,
            sort_keys=False,
        )
        super().__init__(
            foreign_pre_chain=_SHARED, processors=[self.remove_processors_meta, self._renderer]
        )

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.msg, Attempts):
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            head = {"timestamp": at, "level": record.levelname.lower(), "event": "attempt"}
            return "\n".join(
                str(self._renderer(None, "", head | _worth_reading(fields)))
                for fields in record.msg
            )
        return super().format(_without_needless_traceback(record))


def _without_needless_traceback(record: logging.LogRecord) -> logging.LogRecord:
    """Where PermissionDenied or DisallowedHost was raised says nothing about our code."""
    status = getattr(record, "status_code", None)
    if not record.exc_info or not isinstance(status, int) or status >= 500:
        return record
    # Other handlers get the record as it was.
    told = copy.copy(record)
    told.exc_info = told.exc_text = None
    return told


def _worth_reading(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in (None, "")}


def formatter(kind: str) -> logging.Formatter:
    """For `logging.config`: `json` or `console`."""
    return JsonLines() if kind == "json" else ConsoleLines()
