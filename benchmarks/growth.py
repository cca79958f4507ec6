"""What one delivery and one `publish` cost as the tables, the subscriptions and the bodies grow.

Costs are CPU time over all programs, and the time until `publish` returns: rates would say more
about what else the machine does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from children import Child
from matching import measure
from phase import Phase
from place import Place, Receiver
from scenarios import (
    OWN,
    OWN_TOPIC,
    SHARED,
    subscribe,
    subscribed,
    to_all,
    to_each,
)
from trial import Trial, trial

HISTORY = (0, 10_000, 100_000, 1_000_000, 10_000_000)
SUBSCRIPTIONS = (100, 1000, 10_000, 100_000)
KIBIBYTES = (1, 4, 16, 64, 256)
FAN_OUT = 20
# Published at each size; less where each is large, or is for one subscription alone.
EVENTS = 400
# What the envelope and the other fields of the payload take of a body, with room to spare.
ENVELOPE = 512

_FILL_EVENTS = """
INSERT INTO deliveries_event (id, topic, type, body, created_at)
SELECT 'history-' || n, 'order.created', 'order', %(body)s::bytea,
    now() - %(days)s * interval '1 day' * (2 - n / %(all)s::float8) / 2
FROM generate_series(%(first)s::int, %(last)s::int) n
"""
_FILL_DELIVERIES = """
INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, attempt_count, retries_used, last_error, created_at,
    finished_at
)
SELECT 'history-' || n, s.id, 'succeeded', 1, 0, '', at.at, at.at
FROM generate_series(%(first)s::int, %(last)s::int) n
CROSS JOIN LATERAL (
    SELECT now() - %(days)s * interval '1 day' * (2 - n / %(all)s::float8) / 2 AS at
) at
CROSS JOIN (SELECT id FROM subscriptions_subscription ORDER BY id LIMIT %(fan_out)s) s
"""
_FILL_ATTEMPTS = """
INSERT INTO deliveries_attempt (
    delivery_id, number, outcome, status_code, error, response_body, remote_address, started_at,
    duration_ms
)
SELECT id, 1, 'success', 200, '', '', '127.0.0.1', created_at, 3 FROM deliveries_delivery
WHERE id > %(before)s
"""
_STEP = 500_000


@dataclass(frozen=True)
class Point:
    """Costs at one size. Microseconds, unless the name says otherwise."""

    size: int
    delivery_cpu: float
    """CPU time of all programs for one delivery, from claim to settled."""
    publish: float
    """Median time until `publish` of one event returned, while no worker ran."""
    missing: int
    duplicates: int
    match: float = 0.0
    index_mib: float = 0.0
    index_build_ms: float = 0.0
    table_mib: float = 0.0


def _cost(
    bench: Trial, size: int, receiver: Receiver, publisher: Child, *, events: int, **plan: Any
) -> Point:
    """Publish while no worker runs, then let workers deliver, and look at each by itself."""
    phase = Phase(bench, receiver)
    # The first call of a process reads what later ones remember.
    phase.publish(publisher, events=1, **plan)
    said = phase.publish(publisher, events=events, **plan)
    bench.start_workers()
    phase.wait(1)
    phase.cpu_before = bench.cpu()
    before = phase.arrived()
    measured = phase.measured("growth", from_first_arrival=True)
    bench.stop_workers()
    return Point(
        size=size,
        delivery_cpu=1e6 * sum(measured.cpu.values()) / (measured.deliveries - before),
        publish=1e6 * said["publish_p50"],
        missing=measured.missing + measured.deliveries - measured.recorded,
        duplicates=measured.duplicates + measured.unexpected,
    )


def history(place: Place, sizes: Sequence[int] = HISTORY) -> list[Point]:
    """With so many deliveries that are finished, each with its attempt, of the last month."""
    found = []
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, FAN_OUT, SHARED)
        filled = 0
        for size in sizes:
            fill_history(place, filled // FAN_OUT, size // FAN_OUT, sizes[-1] // FAN_OUT)
            filled = size
            table_mib = _table_mib(place)
            point = _cost(bench, size, receiver, publisher, events=EVENTS, **to_all(FAN_OUT))
            found.append(replace(point, table_mib=table_mib))
    return found


def fill_history(place: Place, first: int, last: int, all_events: int, days: float = 28.0) -> None:
    """Events number `first` to `last - 1`, for `FAN_OUT` subscriptions each, all delivered.

    The oldest of all was `days` ago, the newest half as long.
    """
    if first == last:
        return
    body = b'{"id":"history","payload":{"customer":"Ada Lovelace","note":"' + b"n" * 100 + b'"}}'
    with place.connect() as connection:
        connection.execute("SET synchronous_commit = off")
        for start in range(first, last, _STEP // FAN_OUT):
            row = connection.execute("SELECT max(id) FROM deliveries_delivery").fetchone()
            values = {
                "first": start,
                "last": min(start + _STEP // FAN_OUT, last) - 1,
                "all": all_events,
                "fan_out": FAN_OUT,
                "body": body,
                "days": days,
                "before": (row[0] if row else None) or 0,
            }
            for statement in (_FILL_EVENTS, _FILL_DELIVERIES, _FILL_ATTEMPTS):
                connection.execute(statement, values)
        # As autovacuum would have by the time that a table has grown this large.
        for table in ("event", "delivery", "attempt"):
            connection.execute(f"VACUUM (ANALYZE) deliveries_{table}")
        connection.execute("CHECKPOINT")


def _table_mib(place: Place) -> float:
    with place.connect() as connection:
        row = connection.execute(
            "SELECT sum(pg_total_relation_size(oid)) / 1048576.0 FROM pg_class"
            " WHERE relkind = 'r' AND relname LIKE 'deliveries%'"
        ).fetchone()
        return float(row[0]) if row else 0.0


def subscriptions(place: Place, sizes: Sequence[int] = SUBSCRIPTIONS) -> list[Point]:
    """With so many subscriptions; each event is for one of them."""
    found = []
    for size in sizes:
        with trial(place) as bench:
            receiver, publisher = bench.receiver(), bench.publisher()
            subscribe(publisher, receiver, size, OWN)
            with place.connect() as connection:
                matching = measure(connection, OWN_TOPIC, size)
            events = EVENTS * FAN_OUT // 4
            # Always for as many of them, so that nothing differs but how many there are.
            some = to_each(SUBSCRIPTIONS[0])
            point = _cost(bench, size, receiver, publisher, events=events, **some)
        found.append(
            replace(
                point,
                match=1e6 * matching.match,
                index_mib=matching.index_bytes / 2**20,
                index_build_ms=1000 * matching.build,
            )
        )
    return found


def payloads(place: Place, kibibytes: Sequence[int] = KIBIBYTES) -> list[Point]:
    """With bodies of so many KiB, for 20 subscriptions each."""
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, FAN_OUT, SHARED)
        return [
            _cost(
                bench,
                size,
                receiver,
                publisher,
                **to_all(FAN_OUT),
                events=EVENTS // 4,
                note_bytes=1024 * size - ENVELOPE,
            )
            for size in kibibytes
        ]
