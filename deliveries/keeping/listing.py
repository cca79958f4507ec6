"""Which deliveries somebody asks for: the newest first, by indexes, some at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Exists, OuterRef, Prefetch, Q, QuerySet

from deliveries.keeping.moments import within
from deliveries.models import Attempt, Delivery, Event
from subscriptions.models import Subscription

# Rows that are looked at in one statement, and for one list, where no index knows what is asked.
BATCH = 1000
MAX_LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class Wanted:
    """`answered`: 2, 3, 4 or 5 for the class of an attempt's answer, 0 for one without an answer.
    `topic`: this very one. `tenant`: "" is the application itself. None: any."""

    subscription: Subscription | None = None
    status: str | None = None
    topic: str | None = None
    tenant: str | None = None
    event: str | None = None
    since: datetime | None = None
    answered: int | None = None

    def indexed(self) -> QuerySet[Delivery]:
        """Those that an index finds; `chosen` says which of them are wanted."""
        rows = Delivery.objects.order_by("-id")
        if self.event is not None:
            return rows.filter(event_id=self.event)
        if self.status is not None and self.status != Delivery.Status.SUCCEEDED:
            rows = rows.filter(status=self.status)
        if self.subscription is not None:
            # True of all ids, and what the index `delivery_history` asks for.
            rows = rows.filter(subscription=self.subscription, id__gt=0)
        if self.tenant:
            rows = rows.filter(tenant=self.tenant)
        return within(rows, self.since, None)

    def chosen(self) -> Q:
        chosen = Q()
        if self.subscription is not None:
            chosen &= Q(subscription=self.subscription)
        if self.status is not None:
            chosen &= Q(status=self.status)
        if self.topic is not None:
            chosen &= Q(event__topic=self.topic)
        if self.tenant is not None:
            chosen &= Q(tenant=self.tenant)
        if self.since is not None:
            chosen &= Q(created_at__gte=self.since)
        if self.event is not None:
            chosen &= Q(event_id=self.event)
        return chosen & self._answered()

    def _answered(self) -> Q:
        if self.answered is None:
            return Q()
        attempts = Attempt.objects.filter(delivery=OuterRef("pk"))
        if self.answered == 0:
            return Q(Exists(attempts.filter(status_code=None)))
        between = (100 * self.answered, 100 * self.answered + 99)
        return Q(Exists(attempts.filter(status_code__range=between)))


def newest(wanted: Wanted, limit: int) -> Iterator[Delivery]:
    """`limit` of the wanted, the newest first, of the newest `MAX_LOOKED_AT` that an index finds.

    Each has its event's topic (`topic`), and its subscription. A batch is read when it is its turn.
    """
    rows, before = wanted.indexed(), None
    for _ in range(MAX_LOOKED_AT // BATCH):
        some = rows if before is None else rows.filter(id__lt=before)
        ids = list(some.values_list("pk", flat=True)[:BATCH])
        found = described(Delivery.objects.filter(wanted.chosen(), pk__in=ids)).order_by("-id")
        for delivery in found[:limit]:
            limit -= 1
            yield delivery
        if len(ids) < BATCH or limit <= 0:
            return
        before = ids[-1]


def described(rows: QuerySet[Delivery]) -> QuerySet[Delivery]:
    # Of a subscription or an event that is gone, the delivery is there all the same.
    return rows.prefetch_related("subscription", Prefetch("event", Event.objects.only("topic")))
