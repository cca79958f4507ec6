"""What of Django's own lines has a traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.test import Client
from django.urls import path

from webhooks_project.logs import ConsoleLines, JsonLines

pytestmark = pytest.mark.urls(__name__)


def forbidden(request: HttpRequest) -> NoReturn:
    raise PermissionDenied


def broken(request: HttpRequest) -> NoReturn:
    raise RuntimeError("canary")


def host(request: HttpRequest) -> NoReturn:
    raise AssertionError(request.get_host())


urlpatterns = [path("forbidden", forbidden), path("broken", broken), path("host", host)]


@pytest.mark.parametrize("lines", [JsonLines, ConsoleLines])
@pytest.mark.parametrize(
    ("address", "host", "status", "traceback"),
    [
        ("/forbidden", "testserver", 403, False),
        ("/host", "elsewhere.example", 400, False),
        ("/broken", "testserver", 500, True),
    ],
)
def test_only_what_is_our_fault_is_logged_with_a_traceback(
    lines: Callable[[], logging.Formatter],
    address: str,
    host: str,
    status: int,
    traceback: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = Client(raise_request_exception=False)
    assert client.get(address, headers={"host": host}).status_code == status
    (record,) = [one for one in caplog.records if getattr(one, "status_code", None) == status]
    assert record.exc_info
    written = lines().format(record)
    assert ("Traceback" in written) == traceback
    assert traceback or len(written.splitlines()) == 1
    assert record.exc_info
