"""What a call may raise: all of it is a `WebhooksError`."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx


class WebhooksError(Exception):
    """The base of all that is raised here.

    `event_ids`: for `publish` and `publish_many`, the ids that the events have, in their order.
    Whoever calls again with these ids publishes nothing twice, whatever became of this call.
    """

    event_ids: tuple[str, ...] = ()


class NoAnswer(WebhooksError):
    """No answer came, though it was tried again where that can do no harm.

    `__cause__` is the last error of httpx. Whether the server has done it is not known.
    """


class BadAnswer(WebhooksError):
    """What answered is not this API: a success that is no JSON, or has not what it must have."""


@dataclass(frozen=True)
class Fault:
    """One fault of a request, and where it is: one of `pointer` (a JSON pointer into the body),
    `parameter` and `header` is not empty; all are if it is about the body as a whole."""

    detail: str
    pointer: str = ""
    parameter: str = ""
    header: str = ""


class ApiError(WebhooksError):
    """The API answered with a problem (RFC 9457).

    `kind` is the last part of `type`, such as `duplicate-name`; docs/api.md explains each.
    `title` says the same in words; `detail` is about this request; `errors` has each fault with
    its place. `problem` is the whole body; empty if the answer was no problem (a proxy's page,
    say). `retry_after`: seconds that the server asked for, or None.
    """

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        self.status = status
        self.problem = dict(problem)
        self.type = _text(problem, "type")
        self.kind = self.type.rpartition("#")[2]
        self.title = _text(problem, "title")
        self.detail = _text(problem, "detail")
        self.instance = _text(problem, "instance")
        self.retry_after = retry_after
        errors = problem.get("errors")
        self.errors = tuple(
            Fault(**{name: _text(one, name) for name in Fault.__dataclass_fields__})
            for one in (errors if isinstance(errors, list) else [])
            if isinstance(one, dict)
        )
        super().__init__(f"{status} {self.title}" + (f": {self.detail}" if self.detail else ""))


class BadRequest(ApiError):
    """400: the request cannot be read."""


class Unauthorized(ApiError):
    """401: the key is missing, wrong, expired or revoked."""


class Forbidden(ApiError):
    """403: the key lacks a scope, or is bound to another tenant."""


class NotFound(ApiError):
    """404: there is no such thing, or it is another tenant's."""


class Conflict(ApiError):
    """409: the name or the event's id is taken, or the state does not allow it."""


class PreconditionFailed(ApiError):
    """412: it has been changed since you read it."""


class TooLarge(ApiError):
    """413: the body has too many bytes."""


class Invalid(ApiError):
    """422: `errors` says what is wrong, and where."""


class TooManyRequests(ApiError):
    """429: the key asks too often; `retry_after` says for how long to wait."""


class ServerError(ApiError):
    """5xx: the server, or something before it, failed."""


class Unavailable(ServerError):
    """503: the server cannot do it now."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    412: PreconditionFailed,
    413: TooLarge,
    422: Invalid,
    429: TooManyRequests,
    503: Unavailable,
}


def from_response(response: httpx.Response) -> ApiError:
    """The error that an answer other than 2xx is. The answer has been read."""
    status = response.status_code
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "title" not in problem:
        problem = {"title": response.reason_phrase or "An unknown status"}
    return kind(status, problem, retry_after(response))


def retry_after(response: httpx.Response, now: datetime | None = None) -> float | None:
    """Seconds from `Retry-After` (RFC 9110, section 10.2.3); None for none that can be read."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    return value if isinstance(value, str) else ""
