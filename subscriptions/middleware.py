"""Says who acts in the admin, for the audit."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.urls import NoReverseMatch, reverse

from subscriptions import audit


class AuditActor:
    """Entries that a request writes name its user; through the admin, they say that too.

    Comes after Django's `AuthenticationMiddleware`. Costs nothing until an entry is written.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        via = "admin" if request.path.startswith(_admin()) else "code"
        with audit.acting(lambda: _user(request), via):
            return self._get_response(request)


def _admin() -> str:
    try:
        return reverse("admin:index")
    except NoReverseMatch:
        return "\0"  # of no path


def _user(request: HttpRequest) -> str:
    user = getattr(request, "user", None)
    return str(user.get_username()) if user is not None and user.is_authenticated else ""
