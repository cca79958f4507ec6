"""The way of a request to `/api/`: past sessions, CSRF tokens and messages, and never to HTML.

It comes after the middleware that concerns every answer, and calls the view itself: what comes
below is for people with a browser, and costs a request of a program half its time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.urls import Resolver404, ResolverMatch, get_urlconf, resolve

from api import problems
from api.problems import Problem
from subscriptions import audit

PREFIX = "/api/"
# Views that would answer any method: the document, and the pages for people.
_PAGES = frozenset({"openapi-json", "openapi-view", "api-problems"})


class AnswerApi:
    """Answers everything under `/api/`, with a problem (RFC 9457) if it cannot."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not f"{request.path_info}/".startswith(PREFIX):
            return self._get_response(request)
        try:
            with audit.acting(lambda: _key_name(request), "api"):
                response = _answer(request)
        except Exception as error:
            response = problems.from_exception(error).response()
        response.setdefault("Cache-Control", "no-store")
        if response.status_code == 204:
            # RFC 9110, section 8.6.
            del response["Content-Type"]
        else:
            # Without it the server would send the body in chunks.
            response.setdefault("Content-Length", str(len(response.content)))
        # What a program got wrong is not for the log of the server, where Django would write it.
        response._has_been_logged = True  # type: ignore[attr-defined]
        return response


def _key_name(request: HttpRequest) -> str:
    """Who acts, for the audit."""
    caller = getattr(request, "auth", None)
    return str(caller.name) if caller is not None else ""


@lru_cache(maxsize=1000)
def _view(path: str, urlconf: str | None) -> ResolverMatch:
    """The view of a path. Django tries one pattern after the other; most paths come again."""
    return resolve(path, urlconf)


def _answer(request: HttpRequest) -> HttpResponse:
    try:
        request.get_host()
    except DisallowedHost:
        raise Problem(
            400,
            "bad-host",
            "This host name is not served here",
            "The header Host names none of WEBHOOKS_ALLOWED_HOSTS.",
        ) from None
    try:
        request.resolver_match = match = _view(request.path_info, get_urlconf())
    except Resolver404:
        raise problems.not_found(f"There is no {request.path_info[:200]!r}.") from None
    if match.url_name in _PAGES and request.method not in ("GET", "HEAD"):
        raise _not_allowed(request, ["GET", "HEAD"])
    is_head = request.method == "HEAD"
    if is_head:
        request.method = "GET"
    response: HttpResponse = match.func(request, *match.args, **match.kwargs)
    if response.status_code == 405:
        allowed = set(response["Allow"].split(", "))
        raise _not_allowed(request, sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
    if is_head:
        response["Content-Length"] = str(len(response.content))
        response.content = b""
    return response


def _not_allowed(request: HttpRequest, allowed: list[str]) -> Problem:
    return Problem(
        405,
        "method-not-allowed",
        "This is not done with this method",
        f"{request.method} is not a method of this; {', '.join(allowed)} can be used.",
        headers={"Allow": ", ".join(allowed)},
    )
