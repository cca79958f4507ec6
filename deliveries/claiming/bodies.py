"""Event bodies, read once for all the deliveries of an event that a process sends."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from subscriptions.conf import conf

if TYPE_CHECKING:
    from deliveries.claiming.claims import ClaimedDelivery

CACHE_BYTES = 32 * 2**20
# What one claim reads at most. Deliveries whose body is beyond it are left for the next claim.
CLAIM_BYTES = 64 * 2**20
# The longest that a body is remembered, in seconds.
CACHE_SECONDS = 60.0


class Payload(NamedTuple):
    """What a request needs of its event."""

    topic: str
    body: bytes


class EventBodies:
    """A cache of event bodies, bounded in bytes and in time. Used by one thread.

    A body that was read for a delivery is valid for as long as retention keeps that delivery:
    only then may the event be removed, and its id published again with another body.
    """

    def __init__(self, most: int = CACHE_BYTES) -> None:
        self._most = most
        self._bytes = 0
        self._cached: OrderedDict[str, tuple[float, Payload]] = OrderedDict()

    def load(self, cursor: Any, deliveries: Iterable[ClaimedDelivery]) -> None:
        """Set the payload of each delivery; one query for all that is not cached.

        A delivery whose body is beyond `CLAIM_BYTES` keeps None; one whose event does not exist
        any more is marked as not to be sent.
        """
        deliveries = list(deliveries)
        self._forget_old()
        payloads = {
            event_id: self._cached[event_id][1]
            for event_id in {delivery.event_id for delivery in deliveries}
            if event_id in self._cached
        }
        missing = {delivery.event_id for delivery in deliveries} - payloads.keys()
        if missing:
            cursor.execute(_READ_BODIES, {"ids": sorted(missing), "most": CLAIM_BYTES})
            for event_id, topic, body in cursor.fetchall():
                missing.discard(event_id)
                if body is not None:
                    payloads[event_id] = Payload(topic, bytes(body))
                    self._keep(event_id, payloads[event_id])
        for delivery in deliveries:
            delivery.payload = payloads.get(delivery.event_id)
            if delivery.event_id in missing:
                delivery.unsendable = "its event does not exist any more"

    def _keep(self, event_id: str, payload: Payload) -> None:
        if len(payload.body) > self._most // 8:
            return
        self._cached[event_id] = (time.monotonic(), payload)
        self._bytes += len(payload.body)
        while self._bytes > self._most:
            self._forget_first()

    def _forget_old(self) -> None:
        values = conf()
        kept = 86400 * min(values.keep_succeeded_days, values.keep_failed_days)
        # Half of it: the database's clock and this process's are not the same.
        oldest = time.monotonic() - min(CACHE_SECONDS, kept / 2)
        while self._cached and next(iter(self._cached.values()))[0] < oldest:
            self._forget_first()

    def _forget_first(self) -> None:
        _, (_, payload) = self._cached.popitem(last=False)
        self._bytes -= len(payload.body)


# The sum is over sizes only; bodies beyond the limit are never fetched.
_READ_BODIES = """
SELECT id, topic, CASE WHEN before < %(most)s THEN body END FROM (
    SELECT id, topic, body,
        sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS before
    FROM deliveries_event WHERE id = ANY(%(ids)s::text[])
) sized
"""
