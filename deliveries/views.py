"""Pages for machines: is the process alive, is everything there.

A project of its own takes them into its URLs, wherever it likes.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse

from deliveries.monitoring.readiness import readiness

_NOT_KEPT = {"Cache-Control": "no-store"}


def healthz(request: HttpRequest) -> HttpResponse:
    """200 while this process answers, whatever else is missing: for who restarts it."""
    return JsonResponse({"status": "alive"}, headers=_NOT_KEPT)


def readyz(request: HttpRequest) -> HttpResponse:
    """200, or 503 with what is missing: for who sends requests here, and for people."""
    found = readiness()
    return JsonResponse(found.as_json(), status=200 if found.ready else 503, headers=_NOT_KEPT)
