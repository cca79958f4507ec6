"""What the tests of the admin share: its pages, and how they are read."""

from __future__ import annotations

import html
from typing import Any

from django.test import Client
from django.utils import timezone

from deliveries.models import Attempt

EVENTS = "/admin/deliveries/event/"
DELIVERIES = "/admin/deliveries/delivery/"
ATTEMPTS = "/admin/deliveries/attempt/"
SUBSCRIPTIONS = "/admin/subscriptions/subscription/"


def listed(client: Client, url: str, **query: Any) -> list[Any]:
    return list(client.get(url, query).context["cl"].result_list)


def text(client: Client, url: str) -> str:
    response = client.get(url)
    assert response.status_code == 200
    return html.unescape(response.content.decode())


def attempted(delivery_id: int, **fields: Any) -> Attempt:
    return Attempt.objects.create(
        **{
            "delivery_id": delivery_id,
            "number": 1,
            "outcome": "http",
            "status_code": 503,
            "error": "503 Service Unavailable",
            "response_body": "<h1>busy</h1>",
            "started_at": timezone.now(),
            "duration_ms": 1234,
            **fields,
        }
    )
