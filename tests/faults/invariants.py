"""What must hold after every fault: the receivers' logs against the tables.

`read` collects the facts; `problems` is a pure function on them, so that `test_invariants.py`
can show that each check fails when it should.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from uuid import UUID

import pytest
from django.db import connection

from tests.faults.history import Attempt, replay
from tests.faults.receivers import Request
from tests.faults.waiting import holds_within
from tests.faults.world import World

VISIBLE = {"pending", "held", "failed", "discarded"}
# A due delivery that is older than this was forgotten: a lease that ran out, and a sweep.
FORGOTTEN = 30.0
LATE_SIGNAL = 5.0

Key = tuple[str, str]
"""A lane's name and an event id: one delivery."""


@dataclass(frozen=True, slots=True)
class Delivery:
    id: int
    status: str
    attempt_count: int
    due: bool
    """Has it a due time?"""
    overdue: float
    """Seconds since it was due; 0 if it is not."""
    leased: bool


@dataclass(frozen=True, slots=True)
class Circuit:
    """What a subscription's row says. `bumped`: epochs that were begun by hand."""

    enabled: bool
    tripped: bool
    failures: int
    epoch: int
    bumped: int


@dataclass
class Facts:
    """The tables and the logs at a moment when nothing moves."""

    wanted: set[Key] = field(default_factory=set)
    deliveries: dict[Key, list[Delivery]] = field(default_factory=dict)
    attempts: dict[int, list[Attempt]] = field(default_factory=dict)
    history: dict[str, list[Attempt]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    circuits: dict[str, Circuit] = field(default_factory=dict)
    tripped_signals: Counter[str] = field(default_factory=Counter)
    reset_signals: Counter[str] = field(default_factory=Counter)
    quick: int = 3
    threshold: int = 5


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers for the report. `undelivered` are in a state that people can see."""

    accepted: int
    deliveries: int
    undelivered: int
    requests: int
    duplicates: int
    unknown: int


def check_invariants(
    world: World,
    *,
    replayed: bool = True,
    may_miss: frozenset[str] = frozenset(),
    claims_lost: bool = False,
) -> Summary:
    """Fails with everything that is wrong.

    `replayed=False` for histories that `history.replay` is not for. `may_miss`: lanes that were
    paused or deleted while events were published for them. `claims_lost`: PostgreSQL crashed. A
    claim does not wait for the disk, so one of the last moment may be forgotten; then the delivery
    is sent again, and both requests are one attempt.
    """
    facts = read(world)
    if any(_trips_without_signals(facts)):
        # A signal is sent after the commit, by another thread: it may come a moment later.
        holds_within(lambda: not any(_trips_without_signals(read(world))), LATE_SIGNAL)
        facts = read(world)
    facts.wanted = {key for key in facts.wanted if key[0] not in may_miss}
    wrong = [
        *problems(facts, claims_lost=claims_lost),
        *(history_problems(facts) if replayed else ()),
    ]
    if wrong:
        pytest.fail("\n".join(wrong[:40]))
    return summary(facts)


def problems(facts: Facts, *, claims_lost: bool = False) -> Iterator[str]:
    """Each a sentence; none if all is well."""
    yield from _unaccounted(facts)
    yield from _stuck(facts)
    yield from _attempts_without_requests(facts, claims_lost)
    yield from _changed_bodies(facts)
    yield from _trips_without_signals(facts)


def _unaccounted(facts: Facts) -> Iterator[str]:
    """Accepted events ⊆ delivered ∪ visible non-delivered states."""
    welcome = {(one.lane, one.id) for one in facts.requests if 200 <= one.status < 300}
    for key in sorted(facts.wanted):
        rows = facts.deliveries.get(key, [])
        if len(rows) != 1:
            yield f"{key}: an accepted event with {len(rows)} deliveries"
        elif rows[0].status == "succeeded" and key not in welcome:
            yield f"{key}: succeeded, and no receiver has seen it"
        elif rows[0].status not in VISIBLE | {"succeeded"}:
            yield f"{key}: has the status {rows[0].status!r}"
    strangers = {(one.lane, one.id) for one in facts.requests} - facts.deliveries.keys()
    for key in sorted(strangers):
        yield f"{key}: a request for which there is no delivery"


def _stuck(facts: Facts) -> Iterator[str]:
    """Whatever is not finished goes on by itself, or waits for an operator and says so."""
    for key, rows in sorted(facts.deliveries.items()):
        circuit = facts.circuits.get(key[0])
        for one in rows:
            if one.leased:
                yield f"{key}: leased, and nobody sends"
            if one.status == "pending" and not one.due:
                yield f"{key}: pending without a due time"
            if one.status == "pending" and one.overdue > FORGOTTEN:
                yield f"{key}: due {one.overdue:.0f} s ago and forgotten"
            if one.status == "pending" and (circuit is None or not circuit.enabled):
                yield f"{key}: pending for a subscription that is not active"
            if one.status == "held" and (circuit is None or circuit.enabled):
                yield f"{key}: held for a subscription that is not stopped"


def _attempts_without_requests(facts: Facts, claims_lost: bool) -> Iterator[str]:
    """Attempts in the table = requests seen (+ those whose outcome says that nobody knows)."""
    seen: dict[Key, Counter[int]] = defaultdict(Counter)
    for one in facts.requests:
        seen[one.lane, one.id][one.status] += 1
    for key, rows in sorted(facts.deliveries.items()):
        for row in rows:
            attempts = facts.attempts.get(row.id, [])
            numbers = sorted(one.number for one in attempts)
            if numbers != list(range(1, row.attempt_count + 1)):
                yield f"{key}: {row.attempt_count} attempts are counted, recorded are {numbers}"
            requests = seen[key].total()
            answered = Counter(one.status for one in attempts if one.answered)
            unanswered = sum(1 for one in attempts if not one.answered)
            if requests > answered.total() + unanswered + claims_lost:
                yield f"{key}: {requests} requests came, {len(attempts)} attempts are recorded"
            for status, count in answered.items():
                if count > seen[key][status or 0]:
                    yield f"{key}: {count} attempts say {status}, the receiver does not"


def _changed_bodies(facts: Facts) -> Iterator[str]:
    """One `webhook-id` never carries two bodies."""
    digests: dict[str, set[bytes]] = defaultdict(set)
    for one in facts.requests:
        digests[one.id].add(one.digest)
    for event_id, bodies in sorted(digests.items()):
        if len(bodies) > 1:
            yield f"{event_id}: came with {len(bodies)} different bodies"


def _trips_without_signals(facts: Facts) -> Iterator[str]:
    """One `circuit_tripped` for each trip: each began an epoch, as each reset did."""
    for name, circuit in sorted(facts.circuits.items()):
        trips = circuit.epoch - circuit.bumped - facts.reset_signals[name]
        if trips != facts.tripped_signals[name]:
            yield f"{name}: {trips} trips, {facts.tripped_signals[name]} signals"
        if circuit.enabled and circuit.tripped:
            yield f"{name}: enabled and tripped at once"


def history_problems(facts: Facts) -> Iterator[str]:
    """`consecutive_failures` equals a replay of the attempts, and so do the trips."""
    for name, circuit in sorted(facts.circuits.items()):
        expected = replay(facts.history.get(name, []), quick=facts.quick, threshold=facts.threshold)
        if circuit.tripped != expected.tripped:
            yield f"{name}: tripped is {circuit.tripped}, by its history {expected.tripped}"
        # A trip ends the count; what was settled together with the last failure is in it.
        if not circuit.tripped and circuit.failures != expected.failures:
            yield f"{name}: {circuit.failures} failures, by its history {expected.failures}"
        if circuit.tripped and circuit.failures < expected.failures:
            yield f"{name}: tripped at {circuit.failures} failures, not {expected.failures}"
        if facts.tripped_signals[name] != expected.trips:
            yield f"{name}: {facts.tripped_signals[name]} signals, {expected.trips} trips"


def summary(facts: Facts) -> Summary:
    seen = Counter((one.lane, one.id) for one in facts.requests)
    rows = [one for key in facts.wanted for one in facts.deliveries.get(key, [])]
    return Summary(
        accepted=len({event_id for _, event_id in facts.wanted}),
        deliveries=len(rows),
        undelivered=sum(1 for one in rows if one.status != "succeeded"),
        requests=len(facts.requests),
        duplicates=seen.total() - len(seen),
        unknown=sum(one.outcome == "unknown" for rows in facts.attempts.values() for one in rows),
    )


def read(world: World) -> Facts:
    """The facts of now. Nothing should move any more."""
    names: dict[UUID, str] = {lane.id: lane.name for lane in world.lanes.values()}
    settings = world.installation.settings
    facts = Facts(
        wanted=world.wanted(),
        requests=list(world.receivers.requests),
        quick=len(str(settings.get("quick_retries", "1,2,4")).split(","))
        if settings.get("quick_retries", "1,2,4")
        else 0,
        threshold=int(str(settings.get("circuit_threshold", 5))),
    )
    for word, subscription_id in world.signals():
        signals = facts.tripped_signals if word == "tripped" else facts.reset_signals
        signals[names[subscription_id]] += 1
    lane_of: dict[int, str] = {}
    with connection.cursor() as cursor:
        cursor.execute(_DELIVERIES)
        for event_id, subscription_id, *values in cursor.fetchall():
            delivery = Delivery(*values)
            name = names[subscription_id]
            lane_of[delivery.id] = name
            facts.deliveries.setdefault((name, event_id), []).append(delivery)
        cursor.execute(_ATTEMPTS)
        for attempt in (Attempt(*row) for row in cursor.fetchall()):
            facts.attempts.setdefault(attempt.delivery, []).append(attempt)
            facts.history.setdefault(lane_of[attempt.delivery], []).append(attempt)
        cursor.execute(
            "SELECT name, enabled, auto_disabled_at IS NOT NULL, consecutive_failures, "
            "circuit_epoch FROM subscriptions_subscription"
        )
        for name, *values in cursor.fetchall():
            facts.circuits[name] = Circuit(*values, bumped=world.lanes[name].bumped)
    return facts


_DELIVERIES = """
SELECT event_id, subscription_id, id, status, attempt_count, next_attempt_at IS NOT NULL,
    greatest(0, coalesce(extract(epoch FROM now() - next_attempt_at), 0))::float8,
    lease_until IS NOT NULL AND (status = 'pending' OR lease_until > now())
FROM deliveries_delivery
"""

_ATTEMPTS = """
SELECT delivery_id, number, outcome, status_code, extract(epoch FROM started_at)::float8,
    duration_ms / 1000.0::float8
FROM deliveries_attempt ORDER BY id
"""
