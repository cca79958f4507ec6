"""What the tests of the routes of subscriptions share."""

from __future__ import annotations

from typing import Any

from subscriptions.models import Subscription
from tests.api.calls import Caller

URL = "/api/v1/subscriptions"
NEW: dict[str, Any] = {
    "name": "billing",
    "url": "https://billing.example.com/hook",
    "topic_patterns": ["order.*"],
}


def caller(**fields: Any) -> Caller:
    """One that may read and write subscriptions."""
    return Caller("subscriptions:read", "subscriptions:write", **fields)


def act(client: Caller, subscription: Subscription, action: str, body: Any = None) -> Any:
    return client.call("POST", f"{URL}/{subscription.pk}/{action}", body)


def problem(response: Any, status: int, type: str) -> dict[str, Any]:
    """The body of an error, after a look at what all errors have in common."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert response.data["type"] == f"/api/problems#{type}"
    found: dict[str, Any] = response.data
    return found


def pointers(response: Any, type: str = "invalid") -> list[str]:
    """The places that a 422 names."""
    return [
        error.get("pointer") or error["parameter"]
        for error in problem(response, 422, type)["errors"]
    ]
