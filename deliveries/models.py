"""Events, deliveries, attempts, and the lane that each subscription's deliveries are sent on.

References to rows of other tables carry no database constraint: a check for each of 5,000
deliveries of one event costs more than everything else in `publish`, and locks the subscription's
row against all others. What the constraint would guarantee is done where rows are deleted:
a deleted subscription's open deliveries are discarded, and `prune` removes deliveries before
their events.
"""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.db.models import Q

from deliveries.body import parse_body
from subscriptions.models import Subscription
from subscriptions.tenants import MAX_LENGTH as MAX_TENANT_LENGTH


class Event(models.Model):
    """Something that happened. `body` holds the very bytes that are signed and sent."""

    id = models.CharField(primary_key=True, max_length=255)
    topic = models.CharField(max_length=255)
    type = models.CharField(max_length=255, blank=True, default="")
    body = models.BinaryField()
    created_at = models.DateTimeField()
    # Whose event it is; empty for the application itself.
    tenant = models.CharField(max_length=MAX_TENANT_LENGTH, blank=True, default="", db_default="")
    # The span that published it, as W3C Trace Context writes it; empty if nothing was traced.
    traceparent = models.CharField(max_length=55, blank=True, default="", db_default="")

    # How many subscriptions of its own tenant it was published to: of an event that `publish` has
    # just recorded; None of one that is known, and of one that was read.
    matched: int | None = None

    class Meta:
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [
            models.Index(fields=["created_at"], name="event_created"),
            # A tenant's events, newest first. The application's own cost nothing.
            models.Index(
                fields=["tenant", "created_at", "id"],
                name="event_of_tenant",
                condition=~Q(tenant=""),
            ),
            # A topic's, for programs that look through them.
            models.Index(fields=["topic", "created_at", "id"], name="event_of_topic"),
        ]

    def __str__(self) -> str:
        return f"{self.topic} {self.id}"

    @property
    def payload(self) -> dict[str, Any]:
        payload: dict[str, Any] = parse_body(bytes(self.body))["payload"]
        return payload


class Delivery(models.Model):
    """One event for one subscription."""

    class Status(models.TextChoices):
        PENDING = "pending"
        HELD = "held"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        DISCARDED = "discarded"

    event = models.ForeignKey(
        Event,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="deliveries",
    )
    subscription = models.ForeignKey(
        Subscription,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="deliveries",
    )
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.PENDING)
    # Due at; null unless pending.
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    # Claimed until; a claim that outlives this died, and what came of its request is unknown.
    lease_until = models.DateTimeField(null=True, blank=True)
    attempt_count = models.PositiveIntegerField(default=0)
    # How many of the scheduled retries, quick and slow, are used up; none after a release.
    retries_used = models.PositiveSmallIntegerField(default=0)
    last_error = models.TextField(blank=True, default="")
    created_at = models.DateTimeField()
    # Since when, or when last, it was held.
    held_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    # Its subscription's, which never changes. What belongs to a tenant is the tenant's event too:
    # only a subscription of the application itself gets events of others.
    tenant = models.CharField(max_length=MAX_TENANT_LENGTH, blank=True, default="", db_default="")

    class Meta:
        ordering: ClassVar = ["-id"]
        verbose_name_plural = "deliveries"
        permissions: ClassVar = [
            ("resend_delivery", "Can send a delivery again"),
            ("discard_delivery", "Can discard a delivery"),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                name="delivery_is_due_only_if_pending",
                condition=Q(status="pending", next_attempt_at__isnull=False)
                | (~Q(status="pending") & Q(next_attempt_at=None)),
            ),
        ]
        # Settling a delivery changes its status, so it makes a new entry in every index that the
        # new row belongs in: an index over all rows costs each delivery two entries, one of the
        # unsuccessful only costs the successful nothing.
        indexes: ClassVar = [
            # An event's deliveries. (The index that Django makes for a foreign key to a text
            # comes with a second one, for LIKE, which no query uses.)
            models.Index(fields=["event"], name="delivery_event"),
            # A subscription's deliveries, newest first. Only for queries that say `id > 0`, as
            # operators' questions do: what sends deliveries must never read a subscription's
            # history for its open ones, whatever the planner believes.
            models.Index(
                fields=["subscription", "id"], name="delivery_history", condition=Q(id__gt=0)
            ),
            # Those that failed or were discarded, of all subscriptions and of one.
            models.Index(
                fields=["status", "id"],
                name="delivery_unsuccessful",
                condition=Q(status__in=["failed", "discarded"]),
            ),
            models.Index(
                fields=["subscription", "status", "id"],
                name="delivery_unsuccessful_of",
                condition=Q(status__in=["failed", "discarded"]),
            ),
            # The same two for a tenant; the application's own deliveries cost nothing.
            models.Index(
                fields=["tenant", "id"], name="delivery_of_tenant", condition=~Q(tenant="")
            ),
            models.Index(
                fields=["tenant", "status", "id"],
                name="delivery_unsuccessful_tenant",
                condition=Q(status__in=["failed", "discarded"]) & ~Q(tenant=""),
            ),
            # What a claim and the sweep read: small, because most rows are finished.
            models.Index(
                fields=["subscription", "next_attempt_at", "id"],
                name="delivery_due",
                condition=Q(status="pending"),
            ),
            # Probes take the oldest held; a release, a discard and the expiry take them all.
            models.Index(
                fields=["subscription", "id"], name="delivery_held", condition=Q(status="held")
            ),
            # Retention, by age.
            models.Index(
                fields=["finished_at"],
                name="delivery_finished",
                condition=Q(finished_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"delivery {self.pk}"


class Attempt(models.Model):
    """One HTTP request of a delivery, with its result."""

    delivery = models.ForeignKey(
        Delivery,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="attempts",
    )
    number = models.PositiveIntegerField()
    # `success`, `http` (an answer that is no success), or why there was none: `timeout`, `dns`,
    # `refused`, `tls` …; `unknown`: the worker died before it could write what came of it.
    outcome = models.CharField(max_length=20)
    status_code = models.PositiveSmallIntegerField(null=True, blank=True)
    error = models.TextField(blank=True, default="")
    response_body = models.TextField(blank=True, default="")
    remote_address = models.CharField(max_length=64, blank=True, default="")
    started_at = models.DateTimeField()
    duration_ms = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            # Finds a delivery's attempts, and lets a result be written twice without harm.
            models.UniqueConstraint(fields=["delivery", "number"], name="attempt_number"),
        ]
        # For operators who ask what went wrong; a success costs them nothing.
        indexes: ClassVar = [
            models.Index(fields=["id"], name="attempt_answered", condition=Q(outcome="http")),
            models.Index(
                fields=["id"], name="attempt_unanswered", condition=Q(status_code__isnull=True)
            ),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of delivery {self.delivery_id}"


class Lane(models.Model):
    """How one subscription's deliveries are sent: by which process, how many at once, when next.

    A row of its own, small and without indexes besides its key, because it changes with every
    claim. It comes into being with the first claim.
    """

    subscription = models.OneToOneField(
        Subscription,
        primary_key=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="lane",
    )
    lease_token = models.UUIDField(null=True)
    lease_until = models.DateTimeField(null=True)
    # A wake-up came while the lane was leased: its holder checks for due rows again.
    wake_again = models.BooleanField(default=False)
    # Requests in flight at once; doubles with success up to the subscription's own limit.
    window = models.PositiveSmallIntegerField(default=1000)
    # Failed attempts in a row.
    failures = models.PositiveIntegerField(default=0)
    # Nothing is sent before: the receiver asked for it, keeps failing, or nothing can be signed.
    resume_at = models.DateTimeField(null=True)
    backoff_reason = models.TextField(default="", db_default="")
    # What was held until then is discarded, a batch at a time by the sweep; null: no discard is
    # under way. Nothing is released or probed meanwhile.
    discard_before = models.DateTimeField(null=True)
    # While failing: the delivery that is tried again first.
    retrying_id = models.BigIntegerField(null=True)


class BigIntegers(models.Field):  # type: ignore[type-arg]  # not at run time
    """An array of numbers; `ArrayField` wants `django.contrib.postgres` from Django 6 on."""

    def db_type(self, connection: Any) -> str:
        return "bigint[]"


class MinuteRollup(models.Model):
    """What was settled within a minute: deliveries by outcome, histograms; see `rollups`."""

    minute = models.DateTimeField(primary_key=True)
    succeeded = models.BigIntegerField()
    failed = models.BigIntegerField()
    retried = models.BigIntegerField()
    held = models.BigIntegerField()
    # Numbers by bucket, in the order of `deliveries/monitoring/buckets.py`.
    attempt_ms = BigIntegers()
    arrival_ms = BigIntegers()


class HourRollup(models.Model):
    """The attempts for a subscription within an hour, those that succeeded and the others."""

    pk = models.CompositePrimaryKey("hour", "subscription_id")
    hour = models.DateTimeField()
    subscription_id = models.UUIDField()
    succeeded = models.BigIntegerField()
    failed = models.BigIntegerField()

    class Meta:
        indexes: ClassVar = [
            # Who fails: a success changes nothing in it.
            models.Index(fields=["hour"], name="hour_with_failures", condition=Q(failed__gt=0)),
        ]


class RollupWriter(models.Model):
    """A process that writes roll-ups, and how many times it did: what is sent again counts once."""

    id = models.UUIDField(primary_key=True)
    number = models.BigIntegerField()
    written_at = models.DateTimeField()
