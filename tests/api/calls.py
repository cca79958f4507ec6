"""Requests to the API in tests."""

from __future__ import annotations

import json
from typing import Any

from django.test import Client

from api.keys import create_key


def key(*scopes: str, **fields: Any) -> str:
    """The text of a new key, which sees all tenants unless a tenant is given."""
    fields.setdefault("all_tenants", "tenant" not in fields)
    return create_key(fields.pop("name", "test"), scopes or ["deliveries:read"], **fields)[1]


class Caller(Client):
    """Django's test client with a key; what it sends is JSON, what it gets is JSON too.

    An error of the server is an answer, not an exception.
    """

    def __init__(self, *scopes: str, key_text: str | None = None, **fields: Any) -> None:
        super().__init__(raise_request_exception=False)
        self.key = key(*scopes, **fields) if key_text is None else key_text

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The response; its `.data` is the parsed body (None for an empty one)."""
        raw = (
            body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        )
        sent = {"Content-Type": "application/json"} if raw else {}
        sent |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        response: Any = self.generic(
            method, path, raw, content_type=sent.pop("Content-Type", ""), headers=sent
        )
        response.data = json.loads(response.content) if response.content else None
        return response


def is_problem(response: Any, status: int, type: str) -> dict[str, Any]:
    """The problem of that type that the response must be."""
    assert response.status_code == status, response.content
    assert response["Content-Type"] == "application/problem+json"
    assert not response.cookies
    assert response.data["type"] == f"/api/problems#{type}"
    assert response.data["status"] == status
    assert response.data["title"]
    found: dict[str, Any] = response.data
    return found
