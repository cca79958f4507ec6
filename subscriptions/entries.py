"""The entries of the audit, as a model; `subscriptions.audit` writes them."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.signals import pre_delete
from django.dispatch import receiver
from django.utils import timezone

from subscriptions import audit
from subscriptions.tenants import MAX_LENGTH as MAX_TENANT_LENGTH


class AuditEntryQuerySet(models.QuerySet["AuditEntry"]):
    def due(self) -> AuditEntryQuerySet:
        """Notices that are to be told now."""
        return self.filter(notify_at__lte=timezone.now())

    def of(self, subscription_id: uuid.UUID) -> AuditEntryQuerySet:
        """A subscription's entries, the newest first: by an index, to be cut to some."""
        return self.filter(subscription_id=subscription_id)

    def untold(self) -> AuditEntryQuerySet:
        """Notices that are to be told, or told again, now or later."""
        return self.filter(notify_at__isnull=False)


class AuditEntry(models.Model):
    """Who did what, when, and from where; see `subscriptions.audit`, which alone writes them.

    An entry that is also a notice is told by `deliveries.notices`: at `notify_at`, by each of its
    channels until all have taken it (`told`), which is then `notified_at`.
    """

    class Action(models.TextChoices):
        CREATED = "created"
        CHANGED = "changed"
        DELETED = "deleted"
        PAUSED = "paused"
        RESUMED = "resumed"
        TRIPPED = "tripped"
        RESET = "reset"
        RECOVERED = "recovered", "Recovered (a probe succeeded)"
        ROTATED = "rotated", "Secret rotated"
        TESTED = "tested"
        REPLAYED = "replayed"
        RESENT = "resent"
        DISCARDED = "discarded"
        DEGRADED = "degraded"
        STILL_TRIPPED = "still_tripped", "Still tripped"
        HELD_EXPIRING = "held_expiring", "Held deliveries expire soon"
        FUSE_BLOWN = "fuse_blown", "Fuse blown"
        FUSE_RESET = "fuse_reset", "Fuse reset"
        KEY_CREATED = "key_created", "API key created"
        KEY_REVOKED = "key_revoked", "API key revoked"

    class Via(models.TextChoices):
        ADMIN = "admin", "Admin"
        COMMAND = "command", "Command"
        API = "api", "API"
        CODE = "code", "Code"
        SYSTEM = "system", "System"

    at = models.DateTimeField(editable=False)
    action = models.CharField(max_length=20, choices=Action, editable=False)
    # No foreign key: the entry stays when the subscription goes.
    subscription_id = models.UUIDField(null=True, editable=False)
    subscription_name = models.CharField(max_length=200, editable=False)
    tenant = models.CharField(max_length=MAX_TENANT_LENGTH, editable=False)
    actor = models.CharField(max_length=200, editable=False)
    via = models.CharField(max_length=10, choices=Via, editable=False)
    detail = models.JSONField(default=dict, editable=False)
    # What is written once: a trip, for example, however many workers see it.
    key = models.CharField(max_length=120, null=True, editable=False)  # noqa: DJ001
    # Null: nothing is to be told, now.
    notify_at = models.DateTimeField(null=True, editable=False)
    notified_at = models.DateTimeField(null=True, editable=False)
    told = models.JSONField(default=list, editable=False)
    notice_attempts = models.PositiveSmallIntegerField(default=0, editable=False)
    notice_error = models.TextField(blank=True, default="", editable=False)

    objects = AuditEntryQuerySet.as_manager()

    class Meta:
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        ordering: ClassVar = ["-at", "-id"]
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["key"], name="audit_key", condition=Q(key__isnull=False)
            ),
        ]
        indexes: ClassVar = [
            # Each list is read in the order of times, from its index alone.
            models.Index(fields=["-at", "-id"], name="audit_listed"),
            models.Index(fields=["action", "-at", "-id"], name="audit_of_action"),
            models.Index(fields=["via", "-at", "-id"], name="audit_of_via"),
            models.Index(fields=["subscription_id", "-at", "-id"], name="audit_of_subscription"),
            # What is to be told: few rows, or none.
            models.Index(
                fields=["notify_at"], name="audit_untold", condition=Q(notify_at__isnull=False)
            ),
        ]

    def __str__(self) -> str:
        return (
            f"{self.get_action_display()}: {self.subject}"
            if self.subject
            else self.get_action_display()
        )

    @property
    def subject(self) -> str:
        """The subscription, as it was called, or the API key."""
        name = self.subscription_name or str(self.detail.get("name", ""))
        return f"{name} ({self.tenant})" if self.tenant else name

    @property
    def who(self) -> str:
        """Who did it, in words."""
        via = self.Via(self.via).label
        return f"{self.actor} ({via})" if self.actor else via

    @property
    def story(self) -> str:
        """What is worth knowing of it, in one line; empty if the action says it all."""
        return audit.story(self.detail)


@receiver(pre_delete, sender="subscriptions.Subscription")
def _record_deletion(instance: models.Model, **_: Any) -> None:
    """In the transaction of the deletion, for each, however it is deleted; of deletions at the same
    moment, by the one that finds the row."""
    rows = type(instance)._base_manager.select_for_update().filter(pk=instance.pk)
    if rows.values_list("pk", flat=True).first() is not None:
        audit.record("deleted", [instance.pk])
