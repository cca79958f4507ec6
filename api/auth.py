"""Who may call a route: `@router.get(…, auth=scope("deliveries:read"))`.

401 without a key, or with one that is wrong, expired or revoked; 429 for one that asks too often;
403 that names the missing scope.
"""

from __future__ import annotations

from functools import cache

from django.http import HttpRequest
from django.views.decorators.debug import sensitive_variables
from ninja.security.base import AuthBase

from api import bodies, keys, throttle
from api.keys import Caller
from api.models import SCOPES
from api.problems import Problem


class ApiKeyAuth(AuthBase):
    """Checks the key, and that it has the scope; only then is the body read.

    `request.auth` is a `Caller`.
    """

    openapi_type = "http"
    openapi_scheme = "bearer"
    openapi_description = (
        "A key that `manage.py create_api_key` or the admin made, such as `whk_3fk2…`. Each "
        "operation says which scope it needs."
    )

    def __init__(self, scope: str) -> None:
        super().__init__()
        self.scope = scope

    @sensitive_variables()
    def __call__(self, request: HttpRequest) -> Caller:
        kind, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if kind.lower() != "bearer" or not text:
            raise _unauthorized("Send a key, in the header Authorization: Bearer whk_…")
        caller = keys.find(text.strip())
        if caller is None:
            raise _unauthorized("The key is wrong, has expired or was revoked.", "invalid_token")
        throttle.count(caller.key_id)
        if self.scope not in caller.scopes:
            raise Problem(
                403,
                "missing-scope",
                "The key lacks a scope",
                f"This needs the scope {self.scope}; the key {caller.name!r} has "
                f"{', '.join(sorted(caller.scopes))}.",
                scope=self.scope,
            )
        bodies.read(request)
        return caller


def _unauthorized(detail: str, error: str = "") -> Problem:
    # RFC 6750, section 3: no error code if there was no key.
    challenge = f'Bearer realm="webhooks", error="{error}"' if error else 'Bearer realm="webhooks"'
    return Problem(
        401,
        "unauthorized",
        "A valid key is needed",
        detail,
        headers={"WWW-Authenticate": challenge},
    )


@cache
def scope(name: str) -> ApiKeyAuth:
    """The `auth` of a route that needs this scope."""
    assert name in SCOPES, name
    return ApiKeyAuth(name)
