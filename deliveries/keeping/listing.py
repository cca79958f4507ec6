"""The newest of the deliveries that somebody asks for, any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from django.db.models import Prefetch, prefetch_related_objects

from deliveries.keeping import keyset
from deliveries.keeping.finding import WantedDeliveries
from deliveries.models import Delivery, Event

# Rows that are read in one statement.
BATCH = 1000
# Rows that are looked at, in as many pages as that takes, where few of them are wanted.
MAX_LOOKED_AT = 100_000


def newest(
    wanted: WantedDeliveries, limit: int, gave_up: Callable[[], object]
) -> Iterator[Delivery]:
    """`limit` of the wanted, in the order of their search, read a batch at a time.

    Each has its event, without the body, and its subscription. `gave_up` is called at the end if
    too many rows were looked at, and there may be more that are wanted.
    """
    search, place, looked_at = wanted.search(), None, 0
    while limit > 0:
        page = keyset.page(search, place, limit=min(limit, BATCH))
        describe(page.rows)
        yield from page.rows
        limit -= len(page.rows)
        looked_at += page.gave_up_after
        place = page.last
        if place is None:
            return
        if limit > 0 and looked_at >= MAX_LOOKED_AT:
            gave_up()
            return


def describe(deliveries: list[Delivery]) -> list[Delivery]:
    """Look up what they are about. Of what is gone, the delivery is there all the same."""
    topics = Prefetch("event", Event.objects.only("topic"))
    prefetch_related_objects(deliveries, "subscription", topics)
    return deliveries
