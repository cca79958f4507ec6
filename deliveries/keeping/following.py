"""What happens from now on: deliveries and their subscriptions, as they change.

All that is read here is found by an index on ids or times: to follow costs the database the same
beside any history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Max
from django.utils import timezone

from deliveries.keeping.finding import WantedDeliveries
from deliveries.keeping.listing import BATCH, describe
from deliveries.models import Attempt, Delivery
from subscriptions.models import AuditEntry

# How many ids back it looks for what was committed late, and how many seconds. A transaction that
# publishes many has thousands of ids, and others commit before it; to read as many takes some
# milliseconds.
LATE = 10_000
LATE_SECONDS = 10
# So many deliveries are watched, those last seen; at first, what is not finished among so many ids.
MAX_WATCHED = 5_000
WATCHED_IDS = 100_000

_OPEN = (Delivery.Status.PENDING, Delivery.Status.HELD)
_FUSE = (AuditEntry.Action.FUSE_BLOWN, AuditEntry.Action.FUSE_RESET)


@dataclass(frozen=True, slots=True)
class Change:
    """`what`: `published`, `attempt`, a status that a delivery has now, or an action of the audit.

    A change of a delivery has the delivery, as it is now; an attempt has itself, too. What the
    audit says of a subscription, or of the fuse, has the audit's `entry` alone.
    """

    at: datetime
    what: str
    delivery: Delivery | None = None
    attempt: Attempt | None = None
    entry: AuditEntry | None = None


class Follower:
    """Each `look` returns what is new since the last one, in the order of time.

    New is what is published, each attempt, every discard, and every other change of status of the
    5,000 deliveries that it saw last, which are at first the newest that are not finished; and what
    the audit says of subscriptions, unless the deliveries of one event, topic, status or answer are
    wanted.

    A look that an error of the database ends loses nothing, and the next one returns it, once; also
    if that is much later.
    """

    def __init__(self, wanted: WantedDeliveries) -> None:
        self._wanted = wanted
        # Whatever their status is now, and becomes.
        self._of = replace(wanted, status=None, answered=None, since=None).chosen()
        self._audits = not (wanted.event or wanted.topic or wanted.status) and (
            wanted.answered is None
        )
        self._found: list[Change] = []
        self._published, self._attempts = _Place(Delivery), _Place(Attempt)
        self._entries = _Place(AuditEntry)
        self._looked_at = timezone.now()
        self._discarded = self._discarded_lately()
        newest = Delivery.objects.filter(
            self._of, status__in=_OPEN, pk__gt=self._published.last - WATCHED_IDS
        ).order_by("-pk")
        self._watched = dict(reversed(newest.values_list("pk", "status")[:MAX_WATCHED]))

    def look(self) -> list[Change]:
        # Statuses first: a change that an attempt made is seen together with the attempt.
        changed = self._changed()
        self._look_for_published()
        told = self._look_for_attempts()
        self._tell({pk: status for pk, status in changed.items() if pk not in told})
        self._look_for_discarded()
        self._look_at_the_audit()
        found, self._found = self._found, []
        return sorted(found, key=lambda change: change.at)

    def _changed(self) -> dict[int, str]:
        return {
            pk: status
            for ids in _batches(self._watched)
            for pk, status in Delivery.objects.filter(pk__in=ids).values_list("pk", "status")
            if self._watched[pk] != status
        }

    def _look_for_published(self) -> None:
        for ids in self._published.new():
            deliveries = self._read(ids)
            self._add(Change(one.created_at, "published", one) for one in deliveries)
            self._keep(deliveries)
            self._published.seen(ids)

    def _look_for_attempts(self) -> set[int]:
        told: set[int] = set()
        for ids in self._attempts.new():
            attempts = list(Attempt.objects.filter(pk__in=ids).order_by("pk"))
            deliveries = {one.pk: one for one in self._read({one.delivery_id for one in attempts})}
            self._add(
                Change(
                    one.started_at + timedelta(milliseconds=one.duration_ms),
                    "attempt",
                    deliveries[one.delivery_id],
                    one,
                )
                for one in attempts
                if one.delivery_id in deliveries
            )
            self._keep(deliveries.values())
            told |= deliveries.keys()
            self._attempts.seen(ids)
        return told

    def _tell(self, changed: dict[int, str]) -> None:
        for ids in _batches(changed):
            for one in self._read(ids):
                status = changed[one.pk]
                since = {"held": one.held_at, "pending": None}.get(status, one.finished_at)
                self._add([Change(since or timezone.now(), status, one)])
                self._watch(one.pk, status)
                if status == Delivery.Status.DISCARDED and one.finished_at:
                    self._discarded[one.pk] = one.finished_at

    def _look_for_discarded(self) -> None:
        now = timezone.now()
        lately = self._discarded_lately()
        fresh = [pk for pk, at in lately.items() if self._discarded.get(pk) != at]
        for ids in _batches(fresh):
            self._add(Change(lately[one.pk], "discarded", one) for one in self._read(ids))
            for pk in ids:
                self._watch(pk, Delivery.Status.DISCARDED)
                self._discarded[pk] = lately[pk]
        self._discarded, self._looked_at = lately, now

    def _discarded_lately(self) -> dict[int, datetime]:
        """Since the last time that this was looked at to the end, and a little before it."""
        since = self._looked_at - timedelta(seconds=LATE_SECONDS)
        rows = Delivery.objects.filter(self._of, finished_at__gte=since, status="discarded")
        return {pk: at for pk, at in rows.values_list("pk", "finished_at") if at is not None}

    def _look_at_the_audit(self) -> None:
        for ids in self._entries.new():
            entries = AuditEntry.objects.filter(pk__in=ids) if self._audits else ()
            self._add(
                Change(one.at, one.action, entry=one) for one in entries if self._is_wanted(one)
            )
            self._entries.seen(ids)

    def _is_wanted(self, entry: AuditEntry) -> bool:
        wanted = self._wanted
        if entry.subscription_id is None:
            return entry.action in _FUSE
        if wanted.subscription is not None:
            return entry.subscription_id == wanted.subscription
        return wanted.tenant is None or entry.tenant == wanted.tenant

    def _read(self, ids: Iterable[int]) -> list[Delivery]:
        return describe(list(Delivery.objects.filter(self._of, pk__in=ids).order_by("pk")))

    def _add(self, changes: Iterable[Change]) -> None:
        """Those of deliveries that are wanted now."""
        found = list(changes)
        ids = [one.delivery.pk for one in found if one.delivery is not None]
        wanted = ids and set(
            Delivery.objects.filter(self._wanted.chosen(), pk__in=ids).values_list("pk", flat=True)
        )
        self._found += [one for one in found if not one.delivery or one.delivery.pk in wanted]

    def _keep(self, deliveries: Iterable[Delivery]) -> None:
        for one in deliveries:
            self._watch(one.pk, str(one.status))

    def _watch(self, pk: int, status: str) -> None:
        self._watched.pop(pk, None)
        self._watched[pk] = status
        if len(self._watched) > MAX_WATCHED:
            del self._watched[next(iter(self._watched))]


class _Place:
    """How far in a table it has looked. Ids are committed out of order: it looks back a little."""

    def __init__(self, model: Any) -> None:
        self._rows = model.objects.order_by("pk")
        self.last = model.objects.aggregate(last=Max("pk"))["last"] or 0
        self._late = set(self._after(self.last - LATE))

    def new(self) -> Iterator[list[int]]:
        """The ids of what is new, in batches; what is not `seen` is new again."""
        yield from _batches([pk for pk in self._after(self.last - LATE) if pk not in self._late])

    def seen(self, ids: Sequence[int]) -> None:
        self._late.update(ids)
        self.last = max(self.last, *ids)
        self._late = {pk for pk in self._late if pk > self.last - LATE}

    def _after(self, pk: int) -> list[int]:
        return list(self._rows.filter(pk__gt=pk).values_list("pk", flat=True))


def _batches(ids: Iterable[int]) -> Iterator[list[int]]:
    every = list(ids)
    for start in range(0, len(every), BATCH):
        yield every[start : start + BATCH]
