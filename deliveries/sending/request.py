"""From a claimed delivery to a request, and from an answer to a judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import requests

from deliveries.claiming.bodies import Payload
from deliveries.claiming.claims import ClaimedDelivery, ClaimedLane
from deliveries.judging.policy import Outcome, Verdict, judge, parse_retry_after
from deliveries.sending import signing
from deliveries.transport import Result as Answer
from deliveries.transport import classify, text_for_operators
from subscriptions.conf import conf

USER_AGENT = "webhooks/1 (+standard-webhooks)"


@dataclass(frozen=True, slots=True)
class Judged:
    """An attempt's result in the words of the tables, with what it means."""

    outcome: Outcome
    code: str
    status_code: int | None = None
    error: str = ""
    response_body: str = ""
    remote_address: str = ""
    duration_ms: int = 0


def prepare(
    lane: ClaimedLane, delivery: ClaimedDelivery, timestamp: int
) -> requests.PreparedRequest:
    """The signed POST of a delivery; `timestamp` in Unix seconds."""
    assert delivery.payload is not None
    return signed_post(
        lane.url, lane.headers, lane.secrets, delivery.event_id, delivery.payload, timestamp
    )


def signed_post(
    url: str,
    headers: Mapping[str, str],
    secrets: Sequence[str],
    event_id: str,
    payload: Payload,
    timestamp: int,
) -> requests.PreparedRequest:
    """The signed POST of an event to a receiver; `timestamp` in Unix seconds.

    Not by `Request.prepare()`: URL and headers were checked when they were saved, and preparing
    them anew costs more than signing.
    """
    topic, body = payload
    request = requests.PreparedRequest()
    request.method = "POST"
    request.url = url
    own = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        **signing.headers(
            body,
            event_id=event_id,
            topic=topic,
            timestamp=timestamp,
            secrets=secrets,
            prefix=conf().header_prefix,
        ),
    }
    if headers:
        # `validate_headers` refused these names, but under the prefix of its time.
        taken = {name.lower() for name in own}
        own |= {name: text for name, text in headers.items() if name.lower() not in taken}
    # A plain dict: making one that ignores case costs as much as signing.
    request.headers = own  # type: ignore[assignment]
    request.body = body
    return request


def judge_response(answer: Answer) -> Judged:
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

    It is tried again on schedule, because the mistake may be mended by then, and the receiver
    is not blamed.
    """
    return Judged(
        Outcome(Verdict.RETRY, excused=True),
        "internal",
        error=f"an error of the sender itself ({type(error).__name__}); its log has the details",
    )
