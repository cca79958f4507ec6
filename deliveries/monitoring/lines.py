"""The log's line of an attempt: wide, with all that one asks about it.

    {"event":"attempt","delivery":4711,"topic":"order.created","status":"succeeded", …}

A batch of attempts is one record of the log, whose message is an `Attempts`: it is made, passed on
and written once for all of them, which costs each a microsecond or two. `webhooks_project.logs`
writes it as JSON; any other formatter gets text, a line each.

No line holds a body, a header, or anything of the URL but the address that was dialled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from json.encoder import encode_basestring as quoted
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deliveries.values import Result

logger = logging.getLogger("deliveries.attempts")

FIELDS = (
    "delivery", "event_id", "topic", "subscription", "subscription_name", "tenant", "number",
    "status", "status_code", "outcome", "duration_ms", "verdict", "next_attempt",
    "remote_address", "error",
)  # fmt: skip
# And `trace_id`, if the event was published in a trace.
# So much of an error is shown.
MAX_ERROR = 200


class Attempts:
    """Attempts that ended, each with the values of `FIELDS` and the trace's id or an empty text:
    plain ones, safe to keep."""

    __slots__ = ("_rows",)

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for *row, trace_id in self._rows:
            fields = dict(zip(FIELDS, row, strict=True))
            yield fields | {"trace_id": trace_id} if trace_id else fields

    def __str__(self) -> str:
        return "\n".join(
            "attempt " + " ".join(f"{name}={value}" for name, value in fields.items())
            for fields in self
        )

    __repr__ = __str__

    def json_lines(self, level: str, timestamp: str) -> str:
        """A JSON object on a line for each. Ten times as quick as `json.dumps`."""
        head = f'{{"event":"attempt","level":"{level}","timestamp":"{timestamp}","delivery":'
        return "\n".join(
            f'{head}{delivery},"event_id":{quoted(event)},"topic":{quoted(topic)},'
            f'"subscription":"{subscription}","subscription_name":{quoted(name)},'
            f'"tenant":{quoted(tenant)},"number":{number},"status":"{status}",'
            f'"status_code":{code or "null"},"outcome":"{outcome}","duration_ms":{duration},'
            f'"verdict":"{verdict}","next_attempt":{f"{chr(34)}{due}{chr(34)}" if due else "null"},'
            f'"remote_address":{quoted(address)},"error":{quoted(error) if error else "null"}'
            f"{f',{chr(34)}trace_id{chr(34)}:{chr(34)}{trace}{chr(34)}' if trace else ''}}}"
            for (
                delivery, event, topic, subscription, name, tenant, number, status, code, outcome,
                duration, verdict, due, address, error, trace,
            ) in self._rows
        )  # fmt: skip


def log_attempts(written: Iterable[tuple[Result, str]], *, successes: bool) -> None:
    """Log results that were written down, each with its delivery's new status.

    Those of failed attempts are warnings. With `successes`, the others are lines as well, of the
    level INFO.
    """
    succeeded: list[tuple[Any, ...]] | None = (
        [] if successes and logger.isEnabledFor(logging.INFO) else None
    )
    failed: list[tuple[Any, ...]] = []
    for result, status in written:
        judged = result.judged
        good = judged.code == "success"
        if good and succeeded is None:
            continue
        lane, delivery = result.lane, result.delivery
        (succeeded if good and succeeded is not None else failed).append(
            (
                delivery.id,
                delivery.event_id,
                delivery.topic,
                lane.subscription_id,
                lane.name,
                lane.tenant,
                delivery.attempt_count + 1,
                status,
                judged.status_code,
                judged.code,
                judged.duration_ms,
                judged.outcome.verdict._value_,
                _due(result.next.delay) if status == "pending" else None,
                judged.remote_address,
                # What a receiver answered may hold what it was sent.
                None
                if judged.status_code is not None
                else " ".join(judged.error.split())[:MAX_ERROR],
                delivery.traceparent[3:35],
            )
        )
    if failed:
        logger.warning(Attempts(failed))
    if succeeded:
        logger.info(Attempts(succeeded))


def _due(delay: float) -> str:
    return datetime.fromtimestamp(time.time() + delay, UTC).isoformat(timespec="milliseconds")
