"""Which deliveries, attempts or events somebody asks for, and the index that finds them.

One answer for the admin, the API and the commands: each search of them names an index that brings
the rows in its order, and what is left to be looked at in these rows (`keyset.page`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import (
    BigIntegerField,
    ExpressionWrapper,
    F,
    FilteredRelation,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
)
from django.db.models.functions import Coalesce
from django.db.models.lookups import Exact, Range

from deliveries.keeping import keyset
from deliveries.keeping.keyset import Search
from deliveries.keeping.moments import Row, within
from deliveries.models import Attempt, Delivery, Event
from subscriptions.models import Subscription

# Classes of answers as people write them; of `none`, there was a request and no answer.
ANSWERS = {"2xx": 2, "3xx": 3, "4xx": 4, "5xx": 5, "none": 0}

# Indexes list what is open by subscription: the newest first would cost every delivery another.
ORDERS_OF_OPEN: dict[str, tuple[str, ...]] = {
    "pending": ("subscription_id", "next_attempt_at", "id"),
    "held": ("subscription_id", "id"),
}
# The id, as an expression, so that the index on the event is read, and not all ids in order. Django
# takes the sum for an integer of 32 bits, and leaves out a comparison with a larger number.
_PLACE = ExpressionWrapper(F("id") + 0, BigIntegerField())
_UNSUCCESSFUL = (Delivery.Status.FAILED, Delivery.Status.DISCARDED)


@dataclass(frozen=True, slots=True)
class WantedDeliveries:
    """None: any. `answered`: the class of the last answer, see `ANSWERS`. `topic`: this very one.
    `tenant`: "" is the application itself. `since` (included) and `until` (not included) are about
    the time of publication."""

    status: str | None = None
    subscription: UUID | None = None
    topic: str | None = None
    tenant: str | None = None
    event: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    answered: int | None = None
    id: int | None = None

    def search(self, *, by_topic: bool | None = None) -> Search[Delivery]:
        """By the index that is likely to find the fewest rows.

        `by_topic`: whether by the topic's events, where something else has an index, too; None: if
        these are few, which may change between two pages.

        The newest come first, with these exceptions: of what is open see `ORDERS_OF_OPEN`; of what
        was answered badly, in whatever status, that which was answered last comes first.
        """
        if self.id is not None:
            return Search(Delivery.objects.filter(pk=self.id), self._left())
        if self.event is not None:
            rows = Delivery.objects.filter(event_id=self.event).annotate(place=_PLACE)
            return Search(rows, self._left("event"), ("-place",))
        indexed = self.subscription or self.tenant or self.status not in (None, "succeeded")
        if self.topic is not None:
            if by_topic is None:
                by_topic = not indexed or self._is_rare()
            if by_topic or not indexed:
                return self._by_topic()
        if self.status in ORDERS_OF_OPEN:
            return self._open()
        if indexed:
            return self._by_id()
        if self.answered not in (None, 2) and self.until is None:
            return self._by_answer()
        return self._by_id()

    def _is_rare(self) -> bool:
        """Whether the topic has so few events that all of them can be looked at."""
        events = WantedEvents(topic=self.topic, since=self.since, until=self.until).search().wanted
        return not events.values("pk")[keyset.MAX_LOOKED_AT :][:1].exists()

    def _by_topic(self) -> Search[Delivery]:
        """By the events of the topic, of which an index knows the time, and then by the event."""
        rows = Delivery.objects.filter(event__topic=self.topic).annotate(
            published_at=F("event__created_at")
        )
        # The same time as the delivery's own.
        rows = _between(rows, "published_at", self.since, self.until)
        return Search(rows, self._left("topic", "time"), ("-published_at", "-event_id", "-id"))

    def _open(self) -> Search[Delivery]:
        assert self.status is not None
        rows, known = Delivery.objects.filter(status=self.status), ["status", "subscription"]
        if self.subscription is not None:
            rows = rows.filter(subscription_id=self.subscription)
        elif self.tenant:
            # A delivery's tenant is its subscription's.
            rows = rows.filter(subscription_id__in=_ids_of_subscriptions(self.tenant))
            known.append("tenant")
        return Search(rows, self._left(*known), ORDERS_OF_OPEN[self.status])

    def _by_answer(self) -> Search[Delivery]:
        """By the attempts that went wrong, of each delivery the last one."""
        last = FilteredRelation("attempts", condition=Q(attempts__number=F("attempt_count")))
        rows = Delivery.objects.annotate(last=last)
        # What the indexes `attempt_unanswered` and `attempt_answered` ask for.
        chosen = self._left("answered")
        if self.answered:
            rows = rows.filter(last__outcome="http")
            chosen &= Q(last__status_code__range=_range(self.answered))
        else:
            rows = rows.filter(last__status_code=None, last__id__gt=0)
        return Search(rows.annotate(attempt=F("last__id")), chosen, ("-attempt",))

    def _by_id(self) -> Search[Delivery]:
        rows, known = Delivery.objects.all(), []
        if self.subscription is not None:
            # True of all ids, and what the index `delivery_history` asks for.
            rows = rows.filter(subscription_id=self.subscription, id__gt=0)
            known.append("subscription")
        if self.tenant:
            rows = rows.filter(tenant=self.tenant)
            known.append("tenant")
        if self.status in _UNSUCCESSFUL:
            rows = rows.filter(status=self.status)
            known.append("status")
        return Search(_made(rows, "created_at", self.since, self.until), self._left("time", *known))

    def chosen(self) -> Q:
        """Whether a delivery is wanted, whatever finds it."""
        return self._left()

    def _left(self, *known: str) -> Q:
        """What the index does not know."""
        left = {
            "subscription": _is("subscription_id", self.subscription),
            "status": _is("status", self.status),
            "event": _is("event_id", self.event),
            "topic": _of_topic(self.topic),
            "tenant": _is("tenant", self.tenant),
            "time": _time("created_at", self.since, self.until),
            "answered": _last_answered(self.answered),
        }
        chosen = Q()
        for name, condition in left.items():
            if name not in known:
                chosen &= condition
        return chosen


@dataclass(frozen=True, slots=True)
class WantedAttempts:
    """None: any. `answered`: see `ANSWERS`. `since` and `until` are about its start."""

    delivery: int | None = None
    event: str | None = None
    answered: int | None = None
    since: datetime | None = None
    until: datetime | None = None

    def search(self) -> Search[Attempt]:
        """The newest first."""
        rows, chosen = Attempt.objects.all(), Q()
        if self.answered == 0:
            rows = rows.filter(status_code=None)
        elif self.answered is not None:
            chosen = Q(status_code__range=_range(self.answered))
            if self.answered != 2:
                rows = rows.filter(outcome="http")  # what the index `attempt_answered` asks for
        if self.delivery is None and self.event is None:
            return Search(_made(rows, "started_at", self.since, self.until), chosen)
        rows = _between(rows, "started_at", self.since, self.until)
        if self.event is not None:
            rows = rows.filter(delivery__event_id=self.event)
        if self.delivery is not None:
            return Search(rows.filter(delivery_id=self.delivery), chosen, ("-number",))
        return Search(rows.annotate(place=_PLACE), chosen, ("-place",))


@dataclass(frozen=True, slots=True)
class WantedEvents:
    """None: any. `tenant`: "" is the application itself."""

    topic: str | None = None
    tenant: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def search(self) -> Search[Event]:
        """The newest first."""
        rows, chosen = Event.objects.defer("body"), Q()
        # There is an index for a topic, and one for a tenant; the application's own is in neither.
        if self.tenant:
            rows, chosen = rows.filter(tenant=self.tenant), _is("topic", self.topic)
        else:
            rows = rows if self.topic is None else rows.filter(topic=self.topic)
            chosen = _is("tenant", self.tenant)
        rows = _between(rows, "created_at", self.since, self.until)
        return Search(rows, chosen, ("-created_at", "-id"))


def _is(field: str, value: Any) -> Q:
    return Q() if value is None else Q(**{field: value})


# A value of each row, and no EXISTS or join: those PostgreSQL may plan as a hash of all events or
# attempts.


def _of_topic(topic: str | None) -> Q:
    if topic is None:
        return Q()
    event = Event.objects.filter(pk=OuterRef("event_id"))
    return Q(Exact(Subquery(event.values("topic")), topic))


def _last_answered(answered: int | None) -> Q:
    if answered is None:
        return Q()
    last = Attempt.objects.filter(delivery=OuterRef("pk"), number=OuterRef("attempt_count"))
    code = Subquery(last.values(code=Coalesce("status_code", 0)))
    return Q(Range(code, _range(answered) if answered else (0, 0)))


def _range(answered: int) -> tuple[int, int]:
    return 100 * answered, 100 * answered + 99


def _made(
    rows: QuerySet[Row], column: str, since: datetime | None, until: datetime | None
) -> QuerySet[Row]:
    """By the ids, which find the time nearly: some rows at both ends are read in vain, which is
    quick, because nothing has to be looked up for them."""
    return _between(within(rows, since, until), column, since, until)


def _between(
    rows: QuerySet[Any], column: str, since: datetime | None, until: datetime | None
) -> QuerySet[Any]:
    return rows.filter(_time(column, since, until))


def _time(column: str, since: datetime | None, until: datetime | None) -> Q:
    chosen = Q()
    if since is not None:
        chosen &= Q(**{f"{column}__gte": since})
    if until is not None:
        chosen &= Q(**{f"{column}__lt": until})
    return chosen


def _ids_of_subscriptions(tenant: str) -> list[UUID]:
    return list(Subscription.objects.filter(tenant=tenant).values_list("pk", flat=True))
