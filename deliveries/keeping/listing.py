"""The newest of the deliveries that somebody asks for, any number of them."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Prefetch, prefetch_related_objects

from deliveries.keeping import keyset
from deliveries.keeping.finding import WantedDeliveries
from deliveries.models import Delivery, Event

# Rows that are read in one statement.
BATCH = 1000
# Pages that find too little among the rows that they look at (`keyset.MAX_LOOKED_AT`): 100,000.
MAX_STOPPED = 10


def newest(wanted: WantedDeliveries, limit: int) -> Iterator[Delivery]:
    """`limit` of the wanted, in the order of their search, read a batch at a time.

    Each has its event, without the body, and its subscription.
    """
    search, place, stopped = wanted.search(), None, 0
    while limit > 0 and stopped < MAX_STOPPED:
        page = keyset.page(search, place, limit=min(limit, BATCH))
        describe(page.rows)
        yield from page.rows
        limit -= len(page.rows)
        stopped += page.stopped
        place = page.last
        if place is None:
            return


def describe(deliveries: list[Delivery]) -> list[Delivery]:
    """Look up what they are about. Of what is gone, the delivery is there all the same."""
    topics = Prefetch("event", Event.objects.only("topic"))
    prefetch_related_objects(deliveries, "subscription", topics)
    return deliveries
