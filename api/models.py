"""The keys of the HTTP API. Only the hash of a key is stored."""

from __future__ import annotations

from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Q
from django.db.models.signals import pre_delete
from django.dispatch import receiver
from django.utils import timezone

from subscriptions import audit
from subscriptions.tenants import MAX_LENGTH as MAX_TENANT_LENGTH
from subscriptions.validators import validate_name, validate_tenant_name

# What a key may be allowed to do.
SCOPES = {
    "events:write": "publish events",
    "subscriptions:read": "see subscriptions, never their secrets",
    "subscriptions:write": "create, change, test, replay and delete subscriptions",
    "deliveries:read": "see events, deliveries and their attempts",
    "deliveries:write": "resend and discard deliveries",
}


def validate_scopes(value: Any) -> None:
    """At least one of `SCOPES`, each once."""
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise ValidationError("Give at least one scope, each once.")
    for scope in value:
        if scope not in SCOPES:
            raise ValidationError(
                f"{str(scope)[:80]!r} is not a scope. The scopes are {', '.join(SCOPES)}."
            )


class ApiKey(models.Model):
    """Who may use the API for what. Made by `api.keys.create_key`, which shows the key once."""

    name = models.CharField(
        max_length=200, validators=[validate_name], help_text="Which program has this key."
    )
    # The part of the key's text by which it is found, and that names it: no secret.
    prefix = models.CharField(max_length=16, unique=True, editable=False)
    # SHA-256 of the whole text.
    digest = models.BinaryField(editable=False)
    scopes = models.JSONField(
        validators=[validate_scopes], help_text="What the key may be used for."
    )
    tenant = models.CharField(
        max_length=MAX_TENANT_LENGTH,
        blank=True,
        default="",
        validators=[validate_tenant_name],
        help_text="The tenant that the key is bound to; empty: the application itself.",
    )
    all_tenants = models.BooleanField(
        default=False, help_text="Bound to no tenant: the key sees and changes what all have."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: it never expires.")
    # Written at most once a minute.
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = "API key"
        ordering: ClassVar = ["name", "id"]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="api_key_one_tenant_or_all",
                condition=Q(all_tenants=False) | Q(tenant=""),
            ),
        ]

    def save(self, *args: Any, **kwargs: Any) -> None:
        is_new = self._state.adding
        with transaction.atomic():
            super().save(*args, **kwargs)
            if is_new:
                audit.record("key_created", [self.audited()])

    def audited(self) -> audit.Entry:
        """What the audit says of the key."""
        detail = {"name": str(self), "scopes": self.scopes, "bound_to": self.bound_to}
        return audit.Entry(detail=detail, tenant=self.tenant)

    def __str__(self) -> str:
        return f"{self.name} (whk_{self.prefix}…)"

    @property
    def bound_to(self) -> str:
        """The tenant in words."""
        if self.all_tenants:
            return "all tenants"
        return self.tenant or "the application"

    @property
    def state(self) -> str:
        """`"live"`, `"revoked"` or `"expired"`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= timezone.now():
            return "expired"
        return "live"


@receiver(pre_delete, sender=ApiKey)
def _record_deletion(instance: ApiKey, **_: Any) -> None:
    """A live key that is deleted ends as one that is revoked."""
    if instance.state == "live":
        audit.record("key_revoked", [instance.audited()])
