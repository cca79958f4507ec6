"""The project's pages, and one that takes its time."""

import os
import time
from pathlib import Path

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from tests.api import routes
from webhooks_project.urls import healthz


def slow(request: HttpRequest) -> HttpResponse:
    """Answers once the file is there."""
    flag = Path(request.GET["until"])
    flag.with_suffix(".begun").touch()
    while not flag.exists():
        time.sleep(0.02)
    return HttpResponse("done")


def meta(request: HttpRequest) -> HttpResponse:
    return JsonResponse({name: str(value) for name, value in request.META.items()})


urlpatterns = [
    path("pid", lambda request: JsonResponse(os.getpid(), safe=False)),
    path("healthz", healthz),
    path("slow", slow),
    path("meta", meta),
    *routes.urlpatterns,
]
