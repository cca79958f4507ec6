"""Every error that the API answers with: problem details, RFC 9457.

`docs/api.md` explains each type. Nothing that the server knows of itself is in an answer: neither
a trace nor the text of an error that nobody expected.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db import InterfaceError, InternalError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe
from psycopg_pool import PoolTimeout
from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
# Where a type is explained; a relative reference, as RFC 9457 (section 3.1.1) allows.
TYPES = "/api/problems#"
# Seconds after which a client may ask again when the database was away or busy.
RETRY_AFTER = 5

# SQLSTATEs of a database that is there: it takes no writes, or it gave up a statement, and why.
_READ_ONLY = "25006"
_GIVEN_UP = {
    "40001": "Another request changed the same rows at the same time.",
    "40P01": "The request and another one waited for each other.",
    "55P03": "Something that the request needs stayed locked by another transaction.",
    "57014": "The request took longer than the database allows.",
}

# What the OpenAPI file says of every route that needs a key, of those that take a body, and of
# those that take anything.
OF_EVERY_ROUTE = (400, 401, 403, 429, 500, 503)
OF_A_BODY = (411, 413, 415)
OF_PARAMETERS = (422,)
# So many faults of a request are named, but of a batch each event that is refused; all are counted.
MAX_ERRORS = 100
# Names of RFC 9110: those of Python before 3.13 are older.
PHRASES = {status.value: status.phrase for status in HTTPStatus if status.value >= 400} | {
    413: "Content Too Large",
    422: "Unprocessable Content",
}
HEADERS = {
    401: ("WWW-Authenticate", "string", "The challenge of RFC 6750."),
    412: ("ETag", "string", "The version that there is."),
    429: ("Retry-After", "integer", "Seconds after which the key may ask again."),
    503: ("Retry-After", "integer", "Seconds after which to send the same again."),
}


class Problem(Exception):
    """What the API answers instead of a result.

    `type` is a slug that `docs/api.md` explains, and the same for all problems of that kind;
    `title` is too. `detail` says what was wrong this time, with the value, and what to do.
    `members` are added to the body: `errors`, a list of `{"pointer": …, "detail": …}` with a JSON
    pointer into the body (RFC 6901), or `parameter` or `header` instead of `pointer`.
    """

    def __init__(
        self,
        status: int,
        type: str,
        title: str,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(status, type, detail)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
        self.members = members

    def response(self) -> HttpResponse:
        body = {
            "type": TYPES + self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }
        return HttpResponse(
            # ASCII: a detail may repeat what UTF-8 cannot hold.
            json.dumps(body),
            status=self.status,
            content_type=MEDIA_TYPE,
            headers=self.headers,
        )


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """What a problem's `type` leads to: each of them explained, as in `docs/api.md`."""
    return render(request, "api/problems.html")


class ErrorItem(BaseModel):
    """One fault of a request: where it is, and what."""

    pointer: str | None = Field(None, description="JSON pointer (RFC 6901) into the body.")
    parameter: str | None = Field(None, description="Name of a parameter of the query or path.")
    header: str | None = Field(None, description="Name of a header.")
    detail: str


class ProblemBody(BaseModel):
    """Problem details (RFC 9457)."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": f"{TYPES}invalid",
                    "title": "The request is not valid",
                    "status": 422,
                    "detail": "/topic: Field required",
                    "errors": [{"pointer": "/topic", "detail": "Field required"}],
                }
            ]
        },
    )

    type: str = Field(description="Which kind of problem: a reference that docs/api.md explains.")
    title: str = Field(description="The kind in words.")
    status: int = Field(description="The status of the answer.")
    detail: str = Field(description="What was wrong this time, and what to do.")
    instance: str | None = Field(
        None, description="With status 500: the id under which the server logged the error."
    )
    errors: list[ErrorItem] | None = Field(None, description="Each fault, with its place.")


def problems(*statuses: int) -> dict[int, type[ProblemBody]]:
    """For `response={200: Out, **problems(404, 422)}`: what the OpenAPI file says of errors.

    `api.api` adds `OF_EVERY_ROUTE` and the like.
    """
    return dict.fromkeys(statuses, ProblemBody)


def from_validation_error(error: ValidationError) -> Problem:
    """422 `invalid`, with a pointer to each field."""
    if not hasattr(error, "error_dict"):
        return invalid([{"pointer": "", "detail": message} for message in error.messages])
    return invalid(
        [
            {"pointer": "" if field == "__all__" else f"/{field}", "detail": message}
            for field, messages in error.message_dict.items()
            for message in messages
        ]
    )


def invalid(errors: list[dict[str, str]], limit: int = MAX_ERRORS) -> Problem:
    """422 with these faults, each `{"pointer" | "parameter" | "header": …, "detail": …}`."""
    first = errors[0]
    place = first.get("pointer") or first.get("parameter") or first.get("header") or ""
    detail = f"{place}: {first['detail']}" if place else first["detail"]
    if len(errors) > 1:
        detail += f" ({len(errors) - 1} more)"
    return Problem(422, "invalid", "The request is not valid", detail, errors=errors[:limit])


def not_found(what: str = "") -> Problem:
    """404; also for what exists and is a stranger's."""
    return Problem(404, "not-found", "There is no such thing here", what)


def from_exception(error: Exception) -> Problem:
    """The problem that any error of a request is to its client; logs those that are our own."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Http404):
        return not_found()
    if isinstance(error, SuspiciousOperation):
        return Problem(
            400,
            "bad-request",
            "The request cannot be read",
            "It has more parameters than a request may have, or is malformed in another way.",
        )
    state = getattr(error.__cause__, "sqlstate", None)
    again = f"Nothing is known to be done. Send the same again in {RETRY_AFTER} s."
    headers = {"Retry-After": str(RETRY_AFTER)}
    if isinstance(error, OperationalError) and state in _GIVEN_UP:
        logger.warning("The database gave up a request: %s", " ".join(str(error).split()))
        return Problem(
            503,
            "interrupted",
            "The database gave up the request",
            f"{_GIVEN_UP[state]} {again}",
            headers=headers,
        )
    is_read_only = isinstance(error, InternalError) and state == _READ_ONLY
    if is_read_only or isinstance(error, OperationalError | InterfaceError | PoolTimeout):
        logger.warning("The database cannot be used: %s", " ".join(str(error).split()))
        what = "It takes no changes just now." if is_read_only else "It cannot be reached."
        return Problem(
            503, "unavailable", "The database cannot be used", f"{what} {again}", headers=headers
        )
    number = uuid.uuid4()
    logger.error("Unexpected error %s", number, exc_info=error)
    return Problem(
        500,
        "internal-error",
        HTTPStatus.INTERNAL_SERVER_ERROR.phrase,
        "The server failed, and its log says why, under the id in `instance`.",
        instance=f"urn:uuid:{number}",
    )
