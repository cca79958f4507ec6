"""Claiming: which deliveries are to be sent now, by whom, and to where.

A claim is a lease on a subscription's lane, so that at most one process sends for it, and on each
delivery that it takes, so that a delivery whose worker died is known by its expired lease. One
statement claims for many subscriptions; those that fail, and those that are probed, share one
more of each kind.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from deliveries.claiming.memory import BodyMemory
from deliveries.claiming.statements import (
    READ_BODIES,
    RELEASE,
    TAKE_LANES,
    TAKE_ONE,
    TAKE_PROBES,
)
from deliveries.judging.policy import OWN_FAULT_DELAY
from deliveries.values import ClaimedDelivery, ClaimedLane, Payload
from subscriptions.conf import conf
from subscriptions.database import as_array, worker_cursor
from subscriptions.secrets.crypto import SecretUnreadable
from subscriptions.validators import sendable_headers

# How many deliveries one claim takes at most, for all of its lanes together: what comes meanwhile
# waits for it. Beside the backlog of the benchmark's *tenants*, traced, the 99th percentile of that
# wait was 71 to 82 ms with 5000 here and 500 for the claimer's `DELIVERIES_AT_ONCE`, and 23 to 31
# with 1000 and 250; the two were not tried apart.
MAX_ROWS = 1000

UNKNOWN_OUTCOME = "the worker stopped before it could record what came of this request"


@dataclass(slots=True)
class Claim:
    """What a claim found.

    `lanes`: to be sent for. `unsendable`: lanes that were taken, of which nothing can be signed;
    to be released with a backoff. `failing`: lanes that belong to the queue `recover`. `again`:
    lanes on which nothing was due, and for which a wake-up came while this claim held them.
    `locked`: another transaction has locked the lane; to be claimed a little later. `unreleased`:
    lanes with nothing to send that another transaction locked before this claim could release
    them; to be released a little later.
    """

    lanes: list[ClaimedLane] = field(default_factory=list)
    unsendable: list[ClaimedLane] = field(default_factory=list)
    failing: list[uuid.UUID] = field(default_factory=list)
    again: list[uuid.UUID] = field(default_factory=list)
    locked: list[uuid.UUID] = field(default_factory=list)
    unreleased: list[uuid.UUID] = field(default_factory=list)


def claim(
    subscription_ids: Iterable[uuid.UUID | str],
    memory: BodyMemory,
    decrypt: Callable[[str], str],
    *,
    token: uuid.UUID,
    failing_too: bool,
) -> Claim:
    """Take the lanes that are free and the deliveries that are due on them.

    `token` names the claim. `failing_too`: whether lanes whose last attempt failed are taken or
    only named. A lane with nothing due is left free. A claim whose process dies ends with its
    lease. Waits for no lock.
    """
    values = conf()
    now = time.monotonic()
    lease: dict[str, Any] = {"lease": values.lease, "unknown": UNKNOWN_OUTCOME}
    room = memory.room()
    first: dict[str, Any] = {
        "ids": as_array(subscription_ids),
        "token": token,
        "failing_too": failing_too,
        "batch": values.claim_batch,
        "rows": memory.rows(MAX_ROWS),
        "room": room,
    }
    lanes: dict[uuid.UUID, ClaimedLane] = {}
    with worker_cursor() as cursor:
        # Not before there is a connection: the statement compares it with the database's clock.
        lease["clock"] = time.time()
        cursor.execute(TAKE_LANES, first | lease)
        rows, bodies, locked = _sorted(cursor.fetchall())
        try:
            found = Claim(locked=locked)
            for row in rows:
                backing_off = row.backoff is not None and row.backoff > 0
                if not row.taken and not backing_off and row.failures and not failing_too:
                    found.failing.append(row.subscription_id)
                if row.taken and (row.ids is not None or row.probe or row.failures):
                    lanes[row.subscription_id] = _lane(row, decrypt, token, now + values.lease)
            if singles := _take_singly(cursor, lanes, rows, lease):
                cursor.execute(READ_BODIES, {"ids": singles, "room": room})
                bodies |= {key: rest for key, *rest in cursor.fetchall()}
            _give_bodies(lanes.values(), bodies, memory)
            idle = [row.subscription_id for row in rows if row.taken]
            idle = [key for key in idle if key not in lanes or not lanes[key].deliveries]
            if idle:
                found.again, found.unreleased = release(cursor, idle, token)
            for lane in lanes.values():
                if lane.deliveries:
                    (found.unsendable if lane.unsendable else found.lanes).append(lane)
        except Exception:
            # What was taken is committed already. If the database is down, the leases run out.
            taken = [row.subscription_id for row in rows if row.taken]
            claimed = {key for row in rows for key in row.ids or ()}
            claimed |= {delivery.id for lane in lanes.values() for delivery in lane.deliveries}
            for lane in lanes.values():
                forget_bodies(lane.deliveries, memory)
            with contextlib.suppress(Exception):
                release(cursor, taken, token, sorted(claimed))
            raise
    return found


def release(
    cursor: Any,
    subscription_ids: Sequence[uuid.UUID],
    token: uuid.UUID,
    delivery_ids: Sequence[int] = (),
    *,
    backoff: float = 0.0,
    reason: str = "",
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """Release lanes that the claim of this token holds, and of which nothing is sent.

    Returns those for which a wake-up came meanwhile, and those that another transaction has
    locked: these are not waited for. With `backoff`, in seconds, they are not claimed again before.
    """
    cursor.execute(
        RELEASE,
        {
            "ids": list(subscription_ids),
            "token": token,
            "deliveries": list(delivery_ids),
            "backoff": backoff,
            "reason": reason,
        },
    )
    again, locked = cursor.fetchone()
    return again, locked


def release_unsendable(cursor: Any, lane: ClaimedLane) -> None:
    """Release a lane of which nothing can be signed; no retry is used, and no attempt recorded."""
    release(
        cursor,
        [lane.subscription_id],
        lane.token,
        [delivery.id for delivery in lane.deliveries],
        backoff=OWN_FAULT_DELAY,
        reason=lane.unsendable,
    )


def forget_bodies(deliveries: Iterable[ClaimedDelivery], memory: BodyMemory) -> None:
    """These deliveries are not sent by this claim."""
    for delivery in deliveries:
        payload, delivery.payload = delivery.payload, None
        if payload is not None:
            memory.release(payload)


class _Row(NamedTuple):
    """A lane of `TAKE_LANES`, with what was claimed for it."""

    subscription_id: uuid.UUID
    taken: bool
    window: int
    failures: int
    retrying_id: int | None
    backoff: float | None
    name: str
    tenant: str
    url: str
    headers: str
    epoch: int
    max_in_flight: int
    enabled: bool
    probe: bool
    secrets: list[str]
    limit: int
    lease: str | None
    ids: list[int] | None
    event_ids: list[str] | None
    attempts: list[int] | None
    retries: list[int] | None
    published: list[float | None] | None


_OF_A_LANE = len(_Row._fields) - 6
_NOTHING = (None,) * 6

# By event: its topic, its body, if there was room for it, its tenant and its traceparent.
_Bodies = dict[str, Sequence[Any]]


def _sorted(rows: Sequence[tuple[Any, ...]]) -> tuple[list[_Row], _Bodies, list[uuid.UUID]]:
    """The lanes with what was claimed for them, the bodies, and the locked lanes."""
    lanes: list[tuple[Any, ...]] = []
    claimed: dict[uuid.UUID, tuple[Any, ...]] = {}
    bodies: _Bodies = {}
    locked: list[uuid.UUID] = []
    for row in rows:
        if row[0] is None:
            bodies[row[6]] = (row[8], row[22], row[7], row[16])
        elif row[1] is not None:
            lanes.append(row)
        elif row[16] is not None:
            claimed[row[0]] = row[_OF_A_LANE:22]
        else:
            locked.append(row[0])
    joined = [_Row._make(row[:_OF_A_LANE] + claimed.get(row[0], _NOTHING)) for row in lanes]
    return joined, bodies, locked


def _lane(
    row: _Row, decrypt: Callable[[str], str], token: uuid.UUID, expires_at: float
) -> ClaimedLane:
    secrets: list[str] = []
    headers: dict[str, str] = {}
    unsendable = "" if row.secrets else "the subscription has no signing secret; add one"
    try:
        secrets = [decrypt(ciphertext) for ciphertext in row.secrets]
        headers = sendable_headers(json.loads(row.headers))
    except (SecretUnreadable, ImproperlyConfigured, ValueError) as error:
        unsendable = str(error)
    lane = ClaimedLane(
        subscription_id=row.subscription_id,
        token=token,
        name=row.name,
        tenant=row.tenant,
        url=row.url,
        headers=headers,
        epoch=row.epoch,
        secrets=secrets,
        unsendable=unsendable,
        max_in_flight=max(1, row.max_in_flight),
        window=1 if row.probe or row.failures else max(1, min(row.window, row.max_in_flight)),
        failures=row.failures,
        probe=row.probe,
        expires_at=expires_at,
    )
    if row.ids is not None:
        _give(lane, row.lease, row.ids, row.event_ids, row.attempts, row.retries, row.published)
        lane.more = len(lane.deliveries) == row.limit
    return lane


def _give(lane: ClaimedLane, lease: Any, *columns: Any) -> None:
    lane.lease = lease
    lane.deliveries = list(map(ClaimedDelivery, *columns))


def _take_singly(
    cursor: Any,
    lanes: dict[uuid.UUID, ClaimedLane],
    rows: Sequence[_Row],
    lease: dict[str, Any],
) -> list[str]:
    """One delivery for each lane that is failing, or that is probed; returns their event ids."""
    probes = [key for key, lane in lanes.items() if lane.probe]
    failing = [row for row in rows if row.taken and row.failures and not row.probe and row.enabled]
    events: list[str] = []
    if failing:
        chosen = {
            "ids": [row.subscription_id for row in failing],
            "retrying": [row.retrying_id for row in failing],
        }
        cursor.execute(TAKE_ONE, chosen | lease)
        for subscription_id, *columns in cursor.fetchall():
            _give(lanes[subscription_id], *columns)
            lanes[subscription_id].more = True
            events += columns[2]
    if probes:
        cursor.execute(TAKE_PROBES, {"ids": probes} | lease)
        for subscription_id, *columns in cursor.fetchall():
            _give(lanes[subscription_id], *columns)
            events += columns[2]
    return events


def _give_bodies(lanes: Iterable[ClaimedLane], bodies: _Bodies, memory: BodyMemory) -> None:
    """Set the payload of each delivery. One whose event does not exist any more is marked."""
    payloads = {
        event_id: Payload(topic, body, tenant=tenant, traceparent=traceparent)
        for event_id, (topic, body, tenant, traceparent) in bodies.items()
        if body is not None
    }
    for lane in lanes:
        held = 0
        for delivery in lane.deliveries:
            payload = payloads.get(delivery.event_id)
            if payload is not None:
                if held and held + len(payload.body) > memory.of_a_lane:
                    # Its body waits for the next claim.
                    break
                held += len(payload.body)
                payload.users += 1
                delivery.payload, delivery.topic = payload, payload.topic
                delivery.traceparent = payload.traceparent
            elif delivery.event_id not in bodies:
                delivery.unsendable = "its event does not exist any more"
    memory.hold([payload for payload in payloads.values() if payload.users])
