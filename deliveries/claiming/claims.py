"""Claiming: which deliveries are to be sent now, by whom, and to where.

A claim is a lease on a subscription's lane, so that at most one task sends for a subscription,
and on each delivery it takes, so that a delivery whose worker died is known by its expired
lease. All leases are by the database's clock. One statement claims for many subscriptions; those
that fail, that are probed, or on which nothing was found, share one more of each kind.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from django.core.exceptions import ImproperlyConfigured

from deliveries.claiming.bodies import EventBodies, Payload
from deliveries.claiming.leaving import give_back, leave
from subscriptions.conf import conf
from subscriptions.database import worker_cursor
from subscriptions.secrets.crypto import SecretUnreadable
from subscriptions.validators import sendable_headers

# What one claim takes at most, shared by its lanes: what is claimed is soon sent, or given back.
CLAIM_ROWS = 5000

UNKNOWN_OUTCOME = "the worker stopped before it could record what came of this request"


@dataclass(slots=True)
class ClaimedDelivery:
    """One delivery to send."""

    id: int
    event_id: str
    attempt_count: int
    retries_used: int
    payload: Payload | None = None
    unsendable: str = ""


@dataclass(slots=True)
class ClaimedLane:
    """A subscription that this process may send for until the lease ends.

    `more`: the claim was full, so there may be more that is due. `probe`: the circuit is
    tripped, and the one delivery is a probe. `unsendable`: why nothing can be signed, if so.
    `lease`: until when, as PostgreSQL writes it; it tells this claim's deliveries from those of
    any other. `well`: the circuit counted no failure when it was claimed. `told`: it has heard
    of a success since, or not a second before.
    """

    subscription_id: uuid.UUID
    name: str
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    epoch: int
    secrets: list[str] = field(repr=False)
    unsendable: str
    max_in_flight: int
    window: int
    failures: int
    probe: bool
    well: bool
    lease: str = ""
    told: bool = False
    deliveries: list[ClaimedDelivery] = field(default_factory=list)
    more: bool = False


@dataclass(slots=True)
class Claim:
    """What a claim found.

    `resting`: seconds until a failing lane may be tried again. `again`: lanes on which nothing
    was due, and for which a wake-up came while this claim held them. `held`: lanes that this claim
    could not leave, because somebody had locked them; `leave` is to be called once more.
    """

    lanes: list[ClaimedLane]
    resting: dict[uuid.UUID, float]
    failing: list[uuid.UUID]
    again: list[uuid.UUID] = field(default_factory=list)
    held: list[uuid.UUID] = field(default_factory=list)


_FREE = """(lane.lease_until IS NULL OR lane.lease_until < now())
            AND (lane.failures = 0 OR %(failing_too)s::bool)
            AND (lane.resume_at IS NULL OR lane.resume_at <= now())"""

# An older lease that is still there belongs to a claim that died: its request, if it was sent,
# becomes an attempt of unknown outcome, and the delivery is sent again.
_LEASED = """leased AS (
    UPDATE deliveries_delivery d
    SET lease_until = now() + %(lease)s::float8 * interval '1 second',
        attempt_count = d.attempt_count + CASE WHEN picked.lease_until IS NULL THEN 0 ELSE 1 END
    FROM picked WHERE d.id = picked.id
    RETURNING d.id, d.subscription_id, d.event_id, d.attempt_count, d.retries_used,
        picked.lease_until AS previous
), unknown AS (
    INSERT INTO deliveries_attempt (
        delivery_id, number, outcome, error, response_body, remote_address, started_at,
        duration_ms
    )
    SELECT id, attempt_count, 'unknown', %(unknown)s::text, '', '',
        previous - %(lease)s::float8 * interval '1 second', 0
    FROM leased WHERE previous IS NOT NULL
), claimed AS (
    SELECT subscription_id,
        (now() + %(lease)s::float8 * interval '1 second')::text AS lease,
        array_agg(id ORDER BY id) AS ids, array_agg(event_id ORDER BY id) AS event_ids,
        array_agg(attempt_count ORDER BY id) AS attempts,
        array_agg(retries_used ORDER BY id) AS retries
    FROM leased GROUP BY subscription_id
)"""

_CLAIMED = f""", {_LEASED}
SELECT subscription_id, lease, ids, event_ids, attempts, retries FROM claimed
"""

# Takes each lane that is free. One that somebody else holds is marked instead, and its holder
# looks once more before leaving: no wake-up is lost between his last look and his release.
# `ORDER BY`, because two claims that lock the same lanes must do so in the same order. A lane with
# nothing due, or soon due, is left as it is: what this wake-up was for is done. (No EXISTS: it may
# be planned as a hash of all that is due, for everybody.)
#
# Of a lane that is well its due deliveries are taken in the same statement. SKIP LOCKED: a row
# that an operator holds, or retention removes, just now is not worth waiting for. The index
# `delivery_due` gives each lane's rows in order; the LATERAL reads no more of them than it takes.
# What the lane's last holder changed since this statement began is seen where the row is locked;
# what was published since has a wake-up of its own, because the flags are lowered before.
#
# What was claimed comes in rows of its own: `lane` and `claimed` have no index, and joined they
# would cost the square of their number.
_TAKE_LANES = f"""
WITH taken AS (
    INSERT INTO deliveries_lane AS lane (
        subscription_id, lease_token, lease_until, wake_again, "window", failures
    )
    SELECT s.id, %(token)s::uuid, now() + %(lease)s::float8 * interval '1 second', false, 1000, 0
    FROM subscriptions_subscription s
    WHERE s.id = ANY(%(ids)s::text::uuid[]) AND coalesce(
        NOT s.enabled AND s.next_probe_at <= now() OR (
            SELECT true FROM deliveries_delivery d
            WHERE d.subscription_id = s.id AND d.status = 'pending'
                AND d.next_attempt_at < now() + interval '1 second'
            LIMIT 1
        ),
        false
    )
    ORDER BY s.id
    ON CONFLICT (subscription_id) DO UPDATE SET
        lease_token = CASE WHEN {_FREE} THEN excluded.lease_token ELSE lane.lease_token END,
        lease_until = CASE WHEN {_FREE} THEN excluded.lease_until ELSE lane.lease_until END,
        wake_again = coalesce(lane.lease_until >= now(), false)
    RETURNING lane.subscription_id, lane.lease_token = %(token)s::uuid AS taken, lane."window",
        lane.failures, lane.retrying_id,
        extract(epoch FROM lane.resume_at - now())::float8 AS rest
), lane AS MATERIALIZED (
    SELECT taken.*, s.name, s.url, s.headers, s.circuit_epoch, s.max_in_flight, s.enabled,
        coalesce(NOT s.enabled AND s.recovery = 'automatic' AND s.next_probe_at <= now(), false)
            AS probe,
        s.consecutive_failures = 0 AND s.last_error = '' AS well,
        taken.failures = 0
            AND coalesce(s.last_success_at > now() - interval '1 second', false) AS told,
        ARRAY(
            SELECT secret.ciphertext FROM subscriptions_signingsecret secret
            WHERE secret.subscription_id = s.id
                AND (secret.expires_at IS NULL OR secret.expires_at > now())
            ORDER BY secret.created_at DESC, secret.id DESC
        ) AS secrets,
        CASE WHEN taken.taken AND s.enabled AND taken.failures = 0 THEN least(
            %(most)s::int, 20 * greatest(1, least(taken."window", s.max_in_flight)),
            greatest(1, %(rows)s::int / (SELECT count(*) FROM taken WHERE taken.taken)::int)
        ) ELSE 0 END AS most
    FROM taken JOIN subscriptions_subscription s ON s.id = taken.subscription_id
), picked AS MATERIALIZED (
    SELECT due.* FROM lane CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.subscription_id = lane.subscription_id AND d.status = 'pending'
            AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at, d.id LIMIT lane.most
        FOR UPDATE SKIP LOCKED
    ) due
), {_LEASED}
SELECT lane.subscription_id, lane.taken, lane."window", lane.failures, lane.retrying_id,
    lane.rest, lane.name, lane.url, lane.headers, lane.circuit_epoch, lane.max_in_flight,
    lane.enabled, lane.probe, lane.well, lane.told, lane.secrets, lane.most,
    NULL, NULL, NULL, NULL, NULL
FROM lane
UNION ALL
SELECT subscription_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, lease, ids, event_ids, attempts, retries
FROM claimed
"""

# A failing lane sends one request: the delivery that it was trying again, once that is due,
# else the next one.
_TAKE_ONE = f"""
WITH picked AS MATERIALIZED (
    SELECT due.* FROM unnest(%(ids)s::uuid[], %(retrying)s::bigint[])
        AS lane (subscription_id, retrying_id)
    CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.id = coalesce(
            (
                SELECT r.id FROM deliveries_delivery r
                WHERE r.id = lane.retrying_id AND r.subscription_id = lane.subscription_id
                    AND r.status = 'pending' AND r.next_attempt_at <= now()
            ),
            (
                SELECT n.id FROM deliveries_delivery n
                WHERE n.subscription_id = lane.subscription_id AND n.status = 'pending'
                    AND n.next_attempt_at <= now()
                ORDER BY n.next_attempt_at, n.id LIMIT 1
            )
        )
        AND d.status = 'pending'
        FOR UPDATE SKIP LOCKED
    ) due
){_CLAIMED}"""

_TAKE_PROBES = f"""
WITH picked AS MATERIALIZED (
    SELECT due.* FROM unnest(%(ids)s::uuid[]) AS lane (subscription_id)
    CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.subscription_id = lane.subscription_id AND d.status = 'held'
        ORDER BY d.id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) due
){_CLAIMED}"""


def is_lock_timeout(error: Exception) -> bool:
    """Whether a statement failed because it had waited too long for a locked row."""
    return isinstance(error.__cause__, psycopg.errors.LockNotAvailable)


def claim(
    subscription_ids: Iterable[uuid.UUID],
    bodies: EventBodies,
    decrypt: Callable[[str], str],
    *,
    token: uuid.UUID,
    failing_too: bool,
) -> Claim:
    """Take the lanes that are free and the deliveries that are due on them.

    `token` names the claim. `failing_too`: whether lanes whose last attempt failed are taken or
    only named. A lane with nothing due is left free. A claim whose process dies ends with its
    lease.
    """
    values = conf()
    ids = list(subscription_ids)
    lease: dict[str, Any] = {"lease": values.lease, "unknown": UNKNOWN_OUTCOME}
    first: dict[str, Any] = {
        # A text is made six times as quickly as an array.
        "ids": "{" + ",".join(map(str, ids)) + "}",
        "token": token,
        "failing_too": failing_too,
        "most": values.claim_batch,
        "rows": CLAIM_ROWS,
    }
    lanes: dict[uuid.UUID, ClaimedLane] = {}
    with worker_cursor() as cursor:
        cursor.execute(_TAKE_LANES, first | lease)
        rows = _joined(cursor.fetchall())
        try:
            found = _sort(rows, lanes, decrypt, failing_too)
            _take_singly(
                cursor, lanes, {row.subscription_id: row.retrying_id for row in rows}, lease
            )
            idle = [row.subscription_id for row in rows if row.taken]
            idle = [one for one in idle if one not in lanes or not lanes[one].deliveries]
            if idle:
                found.again, found.held = leave(cursor, idle, token)
            found.lanes = [lane for lane in lanes.values() if lane.deliveries]
            if found.lanes:
                bodies.load(cursor, [one for lane in found.lanes for one in lane.deliveries])
        except Exception:
            # What was taken is committed already. If the database is away, the leases run out.
            taken = [row.subscription_id for row in rows if row.taken]
            claimed = {one for row in rows for one in row.ids or ()}
            claimed |= {one.id for lane in lanes.values() for one in lane.deliveries}
            with contextlib.suppress(Exception):
                give_back(cursor, taken, sorted(claimed), token)
            raise
    return found


def _sort(
    rows: Sequence[_Row],
    lanes: dict[uuid.UUID, ClaimedLane],
    decrypt: Callable[[str], str],
    failing_too: bool,
) -> Claim:
    """Put the lanes that were taken, and may have something to send, into `lanes`."""
    found = Claim([], {}, [])
    for row in rows:
        if not row.taken:
            if row.rest is not None and row.rest > 0:
                found.resting[row.subscription_id] = row.rest
            elif row.failures and not failing_too:
                found.failing.append(row.subscription_id)
        elif row.ids is not None or row.probe or (row.enabled and row.failures):
            lanes[row.subscription_id] = _lane(row, decrypt)
    return found


class _Row(NamedTuple):
    """A lane of `_TAKE_LANES`, with what was claimed for it."""

    subscription_id: uuid.UUID
    taken: bool
    window: int
    failures: int
    retrying_id: int | None
    rest: float | None
    name: str
    url: str
    headers: str
    epoch: int
    max_in_flight: int
    enabled: bool
    probe: bool
    well: bool
    told: bool
    secrets: list[str]
    most: int
    lease: str | None
    ids: list[int] | None
    event_ids: list[str] | None
    attempts: list[int] | None
    retries: list[int] | None


_OF_A_LANE = len(_Row._fields) - 5


def _joined(rows: Sequence[tuple[Any, ...]]) -> list[_Row]:
    nothing = (None,) * 5
    claimed = {row[0]: row[_OF_A_LANE:] for row in rows if row[-1] is not None}
    return [
        _Row._make(row[:_OF_A_LANE] + claimed.get(row[0], nothing))
        for row in rows
        if row[-1] is None
    ]


def _lane(row: _Row, decrypt: Callable[[str], str]) -> ClaimedLane:
    secrets: list[str] = []
    headers: dict[str, str] = {}
    unsendable = "" if row.secrets else "the subscription has no signing secret; add one"
    try:
        secrets = [decrypt(token) for token in row.secrets]
        headers = sendable_headers(json.loads(row.headers))
    except (SecretUnreadable, ImproperlyConfigured, ValueError) as error:
        unsendable = str(error)
    lane = ClaimedLane(
        subscription_id=row.subscription_id,
        name=row.name,
        url=row.url,
        headers=headers,
        epoch=row.epoch,
        secrets=secrets,
        unsendable=unsendable,
        max_in_flight=max(1, row.max_in_flight),
        window=1 if row.probe or row.failures else max(1, min(row.window, row.max_in_flight)),
        failures=row.failures,
        probe=row.probe,
        well=row.well,
        told=row.told,
    )
    if row.ids is not None:
        _give(lane, row.lease, row.ids, row.event_ids, row.attempts, row.retries)
        lane.more = len(lane.deliveries) == row.most
    return lane


def _give(lane: ClaimedLane, lease: Any, *columns: Any) -> None:
    lane.lease = lease
    lane.deliveries = list(map(ClaimedDelivery, *columns))


def _take_singly(
    cursor: Any,
    lanes: dict[uuid.UUID, ClaimedLane],
    retrying: dict[uuid.UUID, int | None],
    lease: dict[str, Any],
) -> None:
    """One delivery for each lane that is failing, or that is probed."""
    probes = [one for one, lane in lanes.items() if lane.probe]
    failing = [one for one, lane in lanes.items() if not lane.probe and lane.failures]
    if failing:
        first = {"ids": failing, "retrying": [retrying[one] for one in failing]}
        cursor.execute(_TAKE_ONE, first | lease)
        for subscription_id, *columns in cursor.fetchall():
            _give(lanes[subscription_id], *columns)
            lanes[subscription_id].more = True
    if probes:
        cursor.execute(_TAKE_PROBES, {"ids": probes} | lease)
        for subscription_id, *columns in cursor.fetchall():
            _give(lanes[subscription_id], *columns)
