"""Subscriptions and their signing secrets."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, ClassVar

from django.core.exceptions import NON_FIELD_ERRORS, ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.signals import post_save
from django.dispatch import receiver
from django.utils import timezone
from django.views.decorators.debug import sensitive_variables

from subscriptions import audit, circuit
from subscriptions.conf import conf
from subscriptions.entries import AuditEntry
from subscriptions.ids import uuid7
from subscriptions.querysets import AUDITED, FIXED, CircuitQuerySet, refuse_fixed
from subscriptions.remembering import Remembering
from subscriptions.secrets import crypto, signing_secrets
from subscriptions.tenants import MAX_LENGTH as MAX_TENANT_LENGTH
from subscriptions.tenants import InvalidTenant, validate_tenant
from subscriptions.topics.fields import (
    PatternsIndex,
    TopicPatternsField,
    topic_keys,
)
from subscriptions.validators import (
    validate_destination,
    validate_headers,
    validate_name,
    validate_patterns,
    validate_tenant_name,
)


def _default_max_in_flight() -> int:
    return conf().max_in_flight


def _default_recovery() -> str:
    return conf().circuit_recovery


class SubscriptionQuerySet(CircuitQuerySet["Subscription"]):
    def bulk_create(
        self, objs: Iterable[Subscription], *args: Any, **kwargs: Any
    ) -> list[Subscription]:
        """As Django's; each new subscription gets a signing secret.

        Raises `ValueError` for `tenant` and `all_tenants` among `update_fields`.
        """
        refuse_fixed(set(kwargs.get("update_fields") or ()))
        with transaction.atomic(using=self.db):
            made = super().bulk_create(objs, *args, **kwargs)
            _give_secrets([subscription.pk for subscription in made])
            audit.record("created", [subscription.pk for subscription in made])
        return made


class Subscription(Remembering):
    """A receiver's URL, the topic patterns it wants, and the state of its circuit.

    `save()` writes only the fields that this instance changed, so that a form that was open
    while the circuit tripped cannot overwrite the trip. A new subscription gets a signing secret
    by itself; `save_with_secret` and `create_subscription` show it. Changing `enabled`, in either
    direction, goes through `subscriptions.circuit`: enabling is a reset. Changing `url` (or a
    secret) begins a new circuit epoch: results of older requests then count for nothing.
    """

    class Recovery(models.TextChoices):
        AUTOMATIC = "automatic", "automatic: probe it, and enable it once it answers"
        MANUAL = "manual", "manual: wait for an operator"

    # Fields that the circuit writes.
    written_elsewhere = frozenset(
        {
            "enabled",
            "auto_disabled_at",
            "consecutive_failures",
            "last_success_at",
            "last_failure_at",
            "last_error",
            "failing_since",
            "failing_by_network",
            "circuit_epoch",
            "probe_count",
            "next_probe_at",
        }
    )

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tenant = models.CharField(
        max_length=MAX_TENANT_LENGTH,
        blank=True,
        default="",
        db_default="",
        validators=[validate_tenant_name],
        help_text="Whose subscription this is, for good; empty for the application itself.",
    )
    all_tenants = models.BooleanField(
        default=False,
        db_default=False,
        help_text="Send it the events of every tenant: for the application's own only.",
    )
    name = models.CharField(
        max_length=200,
        validators=[validate_name],
        help_text="A name for operators and commands, unique within its tenant.",
    )
    url = models.CharField(
        "URL",
        max_length=2000,
        validators=[validate_destination],
        help_text="Where events are sent, by POST: an http or https address.",
    )
    topic_patterns = TopicPatternsField(
        default=list,
        validators=[validate_patterns],
        help_text='A list such as ["order.*", "attacker.>"]: `*` is one token, `>` the rest.',
    )
    headers = models.JSONField(
        default=dict,
        blank=True,
        validators=[validate_headers],
        help_text="Headers to add to each request, as a JSON object.",
    )
    max_in_flight = models.PositiveSmallIntegerField(
        default=_default_max_in_flight,
        validators=[MinValueValidator(1), MaxValueValidator(1000)],
        help_text="Requests in flight at a time, at most.",
    )
    recovery = models.CharField(max_length=10, choices=Recovery.choices, default=_default_recovery)

    enabled = models.BooleanField(
        default=True, help_text="Off: paused by you, or tripped (then it has a trip time)."
    )
    auto_disabled_at = models.DateTimeField("tripped at", null=True, blank=True, editable=False)
    consecutive_failures = models.PositiveIntegerField(default=0, editable=False)
    # When the first of `consecutive_failures` was counted; without meaning if that is 0.
    failing_since = models.DateTimeField(null=True, blank=True, editable=False)
    last_success_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_failure_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_error = models.TextField(blank=True, default="", editable=False)
    # Whether the latest failure may be our own network's; see `subscriptions.circuit.fuse`.
    failing_by_network = models.BooleanField(default=False, db_default=False, editable=False)
    circuit_epoch = models.BigIntegerField(default=0, editable=False)
    probe_count = models.PositiveSmallIntegerField(default=0, editable=False)
    next_probe_at = models.DateTimeField(null=True, blank=True, editable=False)

    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    objects = SubscriptionQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["tenant", "name"]
        # What an operator does; who may do it is in `deliveries.roles`.
        permissions: ClassVar = [
            ("reset_subscription", "Can reset the circuit of a subscription"),
            ("pause_subscription", "Can pause and resume a subscription"),
            ("test_subscription", "Can send a test event to a subscription"),
            ("rotate_subscription", "Can rotate the secret of a subscription"),
            ("replay_subscription", "Can replay deliveries of a subscription"),
        ]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["tenant", "name"],
                name="subscription_name_in_tenant",
                violation_error_code="unique",
                violation_error_message="The tenant has a subscription with this name already.",
            ),
            models.CheckConstraint(
                name="subscription_for_all_tenants_is_the_applications",
                condition=Q(all_tenants=False) | Q(tenant=""),
                violation_error_code="all_tenants",
                violation_error_message="Only a subscription of the application itself, whose "
                "tenant is empty, can be for all tenants.",
            ),
            models.CheckConstraint(
                name="subscription_enabled_is_not_tripped",
                condition=Q(enabled=False) | Q(auto_disabled_at=None),
            ),
        ]
        indexes: ClassVar = [
            # Publishing finds the subscriptions of one tenant, and those for all, that have one of
            # the patterns which match.
            PatternsIndex(topic_keys(), name="subscription_topic_keys", fastupdate=False),
            # The sweep asks every few seconds which tripped circuits are due for a probe.
            models.Index(
                fields=["next_probe_at"],
                name="subscription_probe_due",
                condition=Q(next_probe_at__isnull=False),
            ),
            # The admin's list in the order of names, and whose a name may be.
            models.Index(fields=["name"], name="subscription_name"),
            # The admin's list: what needs an operator comes first.
            models.Index(
                F("auto_disabled_at").desc(nulls_last=True), F("name"), name="subscription_listed"
            ),
            # The fuse asks at each trip how many others there were in the last minutes.
            models.Index(
                fields=["auto_disabled_at"],
                name="subscription_tripped",
                condition=Q(auto_disabled_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.tenant})" if self.tenant else self.name

    @property
    def state(self) -> str:
        """`"active"`, `"paused"` or `"tripped"`."""
        if self.enabled:
            return "active"
        return "paused" if self.auto_disabled_at is None else "tripped"

    def clean(self) -> None:
        if not self._state.adding and (refused := FIXED.keys() & self.changed_fields()):
            raise ValidationError({name: FIXED[name] for name in refused})

    def validate_constraints(self, exclude: Collection[str] | None = None) -> None:
        exclude = set(exclude or ())
        with suppress(InvalidTenant):
            validate_tenant(self.tenant)
            # Also where a form does not show it.
            exclude.discard("tenant")
        try:
            super().validate_constraints(exclude)
        except ValidationError as error:
            errors = error.error_dict
            for one in errors.pop(NON_FIELD_ERRORS, []):
                field = {"unique": "name", "all_tenants": "all_tenants"}.get(one.code or "")
                errors.setdefault(field or NON_FIELD_ERRORS, []).append(one)
            raise

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Write what changed; see the class.

        Raises what `Model.save` does, and `ValueError` for a change of the tenant or of
        `all_tenants`.
        """
        if self._state.adding and not (kwargs.get("force_update") or kwargs.get("update_fields")):
            with transaction.atomic():
                super().save(*args, **kwargs)
            self.remember()
            return
        named = kwargs.pop("update_fields", None)
        changed = self.changed_fields()
        fields = changed if named is None else set(named)
        refuse_fixed(fields & changed)
        re_pointed = "url" in fields and self.url != self._loaded.get("url")
        old = {name: self._loaded[name] for name in AUDITED if name in self._loaded}
        new = {name: getattr(self, name) for name in AUDITED if name in fields & changed}
        with transaction.atomic():
            if "enabled" in fields and not self.enabled:
                circuit.pause_active([self.pk])
            if written := fields - {"enabled"}:
                super().save(*args, update_fields=written | {"updated_at"}, **kwargs)
            if difference := audit.changes(old, new):
                audit.record("changed", [self.pk], detail={"fields": difference})
            if re_pointed:
                circuit.begin_epoch([self.pk], new_receiver=True)
            if "recovery" in fields:
                circuit.plan_probes([self.pk])
            if "enabled" in fields and self.enabled:
                circuit.reset([self.pk])
            if re_pointed or {"enabled", "recovery"} & fields:
                self.refresh_from_db()
        self.remember()

    # The secret that `save` stores with a new subscription, encrypted.
    _first_ciphertext: str | None = None

    # Django's error reports show the variables of every frame.
    @sensitive_variables()
    def save_with_secret(self, secret: str | None = None) -> str:
        """Save this new subscription and its first secret, and return that.

        The secret is generated unless given, and is not to be had again. Raises `InvalidSecret`
        for a text that is no secret; then nothing is saved.
        """
        text = signing_secrets.generate() if secret is None else signing_secrets.parse(secret)
        self._first_ciphertext = crypto.encrypt(text.encode())
        self.save(force_insert=True)
        return text

    @sensitive_variables()
    def add_secret(self, secret: str | None = None) -> str:
        """Add a signing secret, generated unless given, and return it: the only time it is shown.

        Raises `InvalidSecret` for a text that is no secret.
        """
        return self._store_secret(secret)

    @sensitive_variables()
    def rotate_secret(self, secret: str | None = None, *, overlap: float | None = None) -> str:
        """Add a new secret and let the others end after `overlap` seconds (default: the setting).

        Until then every request carries a signature by each, so that the receiver can change
        over at any moment between. Raises `ValidationError` if more than ten would be in force.
        """
        seconds = conf().secret_overlap if overlap is None else overlap
        return self._store_secret(secret, end_others_at=timezone.now() + timedelta(seconds=seconds))

    def _store_secret(self, secret: str | None, end_others_at: datetime | None = None) -> str:
        text = signing_secrets.generate() if secret is None else signing_secrets.parse(secret)
        token = crypto.encrypt(text.encode())
        with transaction.atomic():
            # It locks the subscription: of rotations at the same moment, each sees the one before.
            circuit.begin_epoch([self.pk])
            if end_others_at is not None:
                self.secrets.live().filter(
                    Q(expires_at=None) | Q(expires_at__gt=end_others_at)
                ).update(expires_at=end_others_at)
                if self.secrets.live().count() >= signing_secrets.MAX_IN_FORCE:
                    raise ValidationError(signing_secrets.TOO_MANY)
            self.secrets.create(ciphertext=token)
            ends = {"old_secrets_end_at": end_others_at.isoformat()} if end_others_at else {}
            audit.record("rotated", [self.pk], detail=ends)
            self.refresh_from_db(fields=["circuit_epoch"])
        return text


class SigningSecretQuerySet(models.QuerySet["SigningSecret"]):
    def live(self) -> SigningSecretQuerySet:
        return self.filter(Q(expires_at=None) | Q(expires_at__gt=timezone.now()))


class SigningSecret(models.Model):
    """One signing secret of a subscription, encrypted. Several may be live at once."""

    subscription = models.ForeignKey(Subscription, on_delete=models.CASCADE, related_name="secrets")
    ciphertext = models.TextField(editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField(null=True, blank=True)

    objects = SigningSecretQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at", "-id"]

    def __str__(self) -> str:
        return f"secret {self.pk}"


def _give_secrets(subscription_ids: Iterable[uuid.UUID]) -> None:
    """A new signing secret for each of these that has none."""
    bare = Subscription.objects.filter(pk__in=subscription_ids, secrets=None)
    SigningSecret.objects.bulk_create(
        SigningSecret(subscription_id=key, ciphertext=_new_ciphertext())
        for key in bare.values_list("pk", flat=True)
    )


def _new_ciphertext() -> str:
    return crypto.encrypt(signing_secrets.generate().encode())


@receiver(post_save, sender=Subscription)
def _give_first_secret(instance: Subscription, created: bool, raw: bool, **_: Any) -> None:
    if created:
        audit.record("created", [instance.pk])
    if raw:
        # A fixture's secrets, if it holds any, come after its subscriptions.
        transaction.on_commit(partial(_give_secrets, [instance.pk]))
    elif created:
        ciphertext, instance._first_ciphertext = instance._first_ciphertext, None
        SigningSecret.objects.create(
            subscription=instance, ciphertext=ciphertext or _new_ciphertext()
        )


class TripFuse(models.Model):
    """The one row that says whether circuits may trip; see `subscriptions.circuit.fuse`."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    blown_at = models.DateTimeField(null=True)
    reset_at = models.DateTimeField(null=True)

    class Meta:
        permissions: ClassVar = [("reset_fuse", "Can reset the fuse")]


@sensitive_variables()
def create_subscription(
    *,
    name: str,
    url: str,
    topic_patterns: Iterable[str],
    secret: str | None = None,
    **fields: Any,
) -> tuple[Subscription, str]:
    """Create a validated subscription and its first secret; returns both.

    The secret is generated unless given, and is not to be had again. Raises
    `ValidationError` (with a message for each field) and `InvalidSecret`; then nothing is
    created.
    """
    subscription = Subscription(name=name, url=url, topic_patterns=list(topic_patterns), **fields)
    subscription.full_clean()
    return subscription, subscription.save_with_secret(secret)


def find_subscription(name_or_id: str, tenant: str | None = None) -> Subscription:
    """The subscription of that name, or of that id. Raises `Subscription.DoesNotExist`.

    A name is looked for among the subscriptions of `tenant`, by default the application's own: what
    a tenant calls its subscriptions changes nothing for others. An id is found in every tenant,
    unless one is given.
    """
    # No name is unprintable, and the database refuses to look for NUL or a lone surrogate.
    named = Subscription.objects.filter(name=name_or_id if name_or_id.isprintable() else "")
    if (found := named.filter(tenant=tenant or "").first()) is not None:
        return found
    chosen = Subscription.objects.all()
    if tenant is not None:
        chosen = chosen.filter(tenant=tenant)
    try:
        return chosen.get(pk=uuid.UUID(name_or_id))
    except (ValueError, Subscription.DoesNotExist):
        raise Subscription.DoesNotExist(_not_found(name_or_id, tenant, named)) from None


def _not_found(name_or_id: str, tenant: str | None, named: models.QuerySet[Subscription]) -> str:
    whose = f"of the tenant {tenant!r} " if tenant else ""
    text = f"No subscription {whose}has the name or id {name_or_id[:100]!r}; "
    if others := list(named.values_list("tenant", flat=True)[:3]):
        who = ", ".join(f"the tenant {one!r}" if one else "the application" for one in others)
        return f"{text}there is one of {who}: say with --tenant whose you mean."
    return f"{text}`manage.py subscriptions` lists them."


__all__ = [
    "AuditEntry",
    "SigningSecret",
    "Subscription",
    "TripFuse",
    "ValidationError",
    "create_subscription",
    "find_subscription",
]
