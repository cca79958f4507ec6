"""What an answer, or the lack of one, means, in the words of the tables."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import requests

from deliveries.judging.policy import Outcome, Verdict, judge, parse_retry_after
from deliveries.transport import Exchange, classify, text_for_operators


# Not frozen: it is made for each request, and to make a frozen one takes 1.2 µs, not 0.2.
@dataclass(slots=True)
class Judged:
    """An attempt's result in the words of the tables, with what it means.

    `code` is the attempt's `outcome`; `duration_ms` are milliseconds.
    """

    outcome: Outcome
    code: str
    status_code: int | None = None
    error: str = ""
    response_body: str = ""
    remote_address: str = ""
    duration_ms: int = 0


def judge_response(answer: Exchange) -> Judged:
    """Judge what the transport brought back."""
    duration = int(answer.elapsed * 1000)
    if answer.response is None:
        assert answer.error is not None
        code = classify(answer.error)
        return Judged(
            judge(None, code, None),
            code,
            error=text_for_operators(str(answer.error).encode(errors="replace")),
            remote_address=answer.remote_address,
            duration_ms=duration,
        )
    response = answer.response
    status = response.status_code
    succeeded = 200 <= status < 300
    retry_after = None
    if not succeeded:
        retry_after = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    text = text_for_operators(response.content) if response.content else ""
    return Judged(
        judge(status, "", retry_after),
        "success" if succeeded else "http",
        status_code=status,
        error="" if succeeded else describe(status, text),
        response_body=text,
        remote_address=answer.remote_address,
        duration_ms=duration,
    )


def describe(status: int, text: str) -> str:
    """`503 Service Unavailable: <the beginning of the body>`, for operators."""
    reason = requests.status_codes._codes.get(status, ("",))[0].replace("_", " ")  # type: ignore[attr-defined]
    line = " ".join(text.split())[:200]
    return f"{status} {reason}".strip() + (f": {line}" if line else "")


def unsendable(outcome: Outcome, reason: str) -> Judged:
    """The result of a delivery that cannot be sent, through no fault of its receiver."""
    return Judged(outcome, "unsendable", error=reason)


def broken(error: Exception) -> Judged:
    """The result of a delivery that ran into a mistake of our own code.

    It is tried again on schedule, because the mistake may be repaired by then, and the receiver
    is not blamed.
    """
    return Judged(
        Outcome(Verdict.RETRY, excused=True),
        "internal",
        error=f"an error of the sender itself ({type(error).__name__}); its log has the details",
    )
