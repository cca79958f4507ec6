"""Pages for machines: is the process alive, is everything there, how does it go.

A project of its own takes them into its URLs, wherever it likes.
"""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import constant_time_compare

from deliveries.monitoring.metrics import CONTENT_TYPE, metrics_page
from deliveries.monitoring.readiness import readiness
from subscriptions.conf import conf

_NOT_KEPT = {"Cache-Control": "no-store"}


def healthz(request: HttpRequest) -> HttpResponse:
    """200 while this process answers, whatever else is missing: for who restarts it."""
    return JsonResponse({"status": "alive"}, headers=_NOT_KEPT)


def readyz(request: HttpRequest) -> HttpResponse:
    """200, or 503 with what is missing: for who sends requests here, and for people."""
    found = readiness()
    return JsonResponse(found.as_json(), status=200 if found.ready else 503, headers=_NOT_KEPT)


def metrics(request: HttpRequest) -> HttpResponse:
    """Everything for Prometheus, if the request has the token; see `metrics_token`."""
    token = conf().metrics_token
    if not token:
        return _refused(403, "Nobody may read the metrics while WEBHOOKS_METRICS_TOKEN is empty.")
    if not constant_time_compare(request.headers.get("Authorization", ""), f"Bearer {token}"):
        refused = _refused(401, "The token of WEBHOOKS_METRICS_TOKEN is needed.")
        refused["WWW-Authenticate"] = "Bearer"
        return refused
    return HttpResponse(metrics_page(), content_type=CONTENT_TYPE, headers=_NOT_KEPT)


def _refused(status: int, why: str) -> HttpResponse:
    return HttpResponse(f"{why}\n", status=status, content_type="text/plain", headers=_NOT_KEPT)
