"""Keys of the API: made, found and revoked.

A key is `whk_`, a prefix of eight characters by which its row is found, `_` and a secret of 256
random bits. The row holds the SHA-256 of the whole. A slow hash is for what people choose: nobody
can guess 256 random bits at any speed, and every request would pay for it.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import string
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any, TypeVar

from django.db import connection, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from api.models import ApiKey
from api.problems import Problem
from subscriptions import audit
from subscriptions.database import DATABASE_ERRORS, prepared_cursor

_LETTERS = string.ascii_letters + string.digits
_SMALL = string.ascii_lowercase + string.digits
# 62^43 > 2^256.
_SECRET_LENGTH = 43
_KEY = re.compile(rf"whk_([{_SMALL}]{{8}})_[A-Za-z0-9]{{{_SECRET_LENGTH}}}")

Row = TypeVar("Row", bound=Model)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request, by its key."""

    key_id: int
    name: str
    tenant: str | None
    """The tenant that the key is bound to (`""`: the application); None: to none, it sees all."""
    scopes: frozenset[str]

    def sees(self, queryset: QuerySet[Row], tenant_path: str = "tenant") -> QuerySet[Row]:
        """Those rows whose tenant, a field or a path to one, the key may see."""
        if self.tenant is None:
            return queryset
        return queryset.filter(**{tenant_path: self.tenant})

    def tenant_for(self, requested: str | None) -> str:
        """The tenant to write for: the key's own, or if it is bound to none the requested one.

        Raises `Problem` (403) for another tenant than the key's.
        """
        if self.tenant is None:
            return requested or ""
        if requested is not None and requested != self.tenant:
            raise Problem(
                403,
                "other-tenant",
                "The key is bound to another tenant",
                f"The key is bound to the tenant {self.tenant!r}; leave the tenant out, or use a "
                "key of the other one.",
            )
        return self.tenant


@sensitive_variables()
def create_key(
    name: str,
    scopes: Iterable[str],
    *,
    tenant: str = "",
    all_tenants: bool = False,
    expires_at: datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; returns its row and its text, which is not to be had again.

    Raises `ValidationError`; then nothing is made.
    """
    key = ApiKey(
        name=name,
        scopes=list(dict.fromkeys(scopes)),
        tenant=tenant,
        all_tenants=all_tenants,
        expires_at=expires_at,
    )
    text = give_secret(key)
    key.full_clean()
    key.save(force_insert=True)
    return key, text


@sensitive_variables()
def give_secret(key: ApiKey) -> str:
    """Set the prefix and the digest of a key that is not saved yet; returns its text."""
    key.prefix = "".join(secrets.choice(_SMALL) for _ in range(8))
    text = f"whk_{key.prefix}_" + "".join(secrets.choice(_LETTERS) for _ in range(_SECRET_LENGTH))
    key.digest = sha256(text.encode()).digest()
    return text


def revoke(keys: QuerySet[ApiKey]) -> int:
    """Revoke those that are not yet; how many. From then on every process refuses them."""
    with transaction.atomic():
        # Locked, so that two who revoke the same key at once are one.
        live = list(keys.filter(revoked_at=None).order_by("pk").select_for_update(no_key=True))
        ApiKey.objects.filter(pk__in=[key.pk for key in live]).update(revoked_at=timezone.now())
        audit.record("key_revoked", [key.audited() for key in live])
    return len(live)


# One index is read, for each request: a key that was revoked is refused at once, by every process.
_FIND = """
SELECT id, name, digest, scopes::text, tenant, all_tenants,
       last_used_at IS NULL OR last_used_at < statement_timestamp() - interval '1 minute'
FROM api_apikey
WHERE prefix = %(prefix)s::text AND revoked_at IS NULL
      AND (expires_at IS NULL OR expires_at > statement_timestamp())
"""
# Of several requests at the same moment one writes, and nobody waits for it.
_USED = """
UPDATE api_apikey SET last_used_at = statement_timestamp()
WHERE id = (
    SELECT id FROM api_apikey
    WHERE id = %(id)s::bigint
          AND (last_used_at IS NULL OR last_used_at < statement_timestamp() - interval '1 minute')
    FOR NO KEY UPDATE SKIP LOCKED
)
"""


def _row(prefix: str) -> Any:
    """What `_FIND` finds; on a new connection if the thread's own has died since its last use."""
    is_kept = connection.connection is not None and not connection.in_atomic_block
    try:
        row = _execute_find(prefix)
    except DATABASE_ERRORS:
        if not is_kept:
            raise
        connection.close()
        row = _execute_find(prefix)
    # Now it is known to work, and nothing else of this request needs to look.
    connection.health_check_done = True  # type: ignore[attr-defined]
    return row


def _execute_find(prefix: str) -> Any:
    with prepared_cursor() as cursor:
        cursor.execute(_FIND, {"prefix": prefix})
        return cursor.fetchone()


@sensitive_variables()
def find(text: str) -> Caller | None:
    """Whose key `text` is; None for a wrong, expired or revoked one. One query; one more a minute,
    which writes the last use."""
    parts = _KEY.fullmatch(text)
    if parts is None:
        return None
    row = _row(parts[1])
    if row is None:
        return None
    key_id, name, digest, scopes, tenant, all_tenants, is_new_use = row
    if not hmac.compare_digest(bytes(digest), sha256(text.encode()).digest()):
        return None
    if is_new_use:
        with prepared_cursor() as cursor:
            cursor.execute(_USED, {"id": key_id})
    return Caller(key_id, name, None if all_tenants else tenant, frozenset(json.loads(scopes)))
