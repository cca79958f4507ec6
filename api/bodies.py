"""The body of a request: read once the caller is known, and only if it can be what is wanted."""

from __future__ import annotations

from django.http import HttpRequest, UnreadablePostError
from django.utils.http import parse_header_parameters

from api.problems import Problem
from subscriptions.conf import conf

MEDIA_TYPE = "application/json"
# Those of which a body means something; another's is not read.
METHODS = frozenset({"POST", "PATCH"})


def read(request: HttpRequest) -> None:
    """Read the body, so that `request.body` has it. Raises `Problem` (400, 411, 413, 415)."""
    if request.method not in METHODS:
        return
    meta = request.META
    if "HTTP_TRANSFER_ENCODING" in meta:
        raise Problem(
            411,
            "length-required",
            "The length of the body must be said first",
            "Send the header Content-Length, and no Transfer-Encoding.",
        )
    length = int(meta.get("CONTENT_LENGTH") or 0)
    if not length:
        return
    limit = conf().api_max_body_bytes
    if length > limit:
        raise Problem(
            413,
            "too-large",
            "The body is too large",
            f"It has {length:,} bytes; {limit:,} are allowed (WEBHOOKS_API_MAX_BODY_BYTES). Send "
            "fewer events at once.",
        )
    kind, parameters = parse_header_parameters(meta.get("CONTENT_TYPE", ""))
    if kind != MEDIA_TYPE or parameters.get("charset", "utf-8").lower() != "utf-8":
        raise _unsupported(f"Send {MEDIA_TYPE}, in UTF-8; it is {meta.get('CONTENT_TYPE', '')!r}.")
    if meta.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
        raise _unsupported("Send the body without a Content-Encoding.")
    try:
        body = request.read(length)
    except UnreadablePostError:
        body = b""
    if len(body) < length:
        raise Problem(
            400, "incomplete-body", "The body ended too early", f"{length:,} bytes were announced."
        )
    # Django's own way to read it has a limit of its own, for forms.
    request._body = body


def _unsupported(detail: str) -> Problem:
    return Problem(415, "unsupported-media-type", "The body is of another kind", detail)
