"""Deliveries at full speed for as long as it takes: do PostgreSQL's tables keep their size?

One worker delivers what is published as fast as it can; `prune` removes what is older than some
seconds, over and over. Sizes and dead rows are noted over time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from children import Child
from machine import Machine
from measuring import now_text, wait_until
from phase import Phase
from place import Place
from report import table
from scenarios import SHARED, subscribed, to_all, warm_up
from trial import Trial, trial

SUBSCRIPTIONS = 20
# Published at once, then looked whether the backlog is short enough for the next.
EVENTS_A_ROUND = 500
BACKLOG = 30_000
PRUNE_SECONDS = 20.0
SAMPLES = 30
# By how much the tables may be larger in the last third than in the one before.
FLAT = 1.25

_SIZES = """
SELECT sum(pg_table_size(relid)), sum(pg_indexes_size(relid)), sum(n_live_tup), sum(n_dead_tup),
    sum(autovacuum_count)
FROM pg_stat_user_tables WHERE schemaname = 'public' AND relname LIKE 'deliveries\\_%'
"""


@dataclass(frozen=True)
class Sample:
    """The tables of deliveries at one moment. Sizes in bytes."""

    seconds: float
    delivered: int
    tables: int
    indexes: int
    live_rows: int
    dead_rows: int
    autovacuums: int
    wal: int
    """Bytes of WAL since the beginning."""
    pruned: int
    """Deliveries removed since the beginning."""


@dataclass
class Soak:
    machine: Machine
    when: str
    keep_seconds: float
    missing: int
    duplicates: int
    unfinished: int
    samples: list[Sample]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Soak:
        """From `dataclasses.asdict`, as it is kept in a file."""
        return cls(
            **{
                **values,
                "machine": Machine(**values["machine"]),
                "samples": [Sample(**one) for one in values["samples"]],
            }
        )

    @property
    def seconds(self) -> float:
        return self.samples[-1].seconds

    @property
    def exact(self) -> bool:
        return not (self.missing or self.duplicates or self.unfinished)


def growth(values: Sequence[int]) -> float:
    """The largest of the last third against the largest of the third before it."""
    third = max(1, len(values) // 3)
    before = max(values[-2 * third : -third], default=0)
    return max(values[-third:]) / before if before else 1.0


def report(soak: Soak) -> str:
    rows = []
    last = Sample(0.0, 0, 0, 0, 0, 0, 0, 0, 0)
    for one in soak.samples:
        seconds, delivered = one.seconds - last.seconds, one.delivered - last.delivered
        rows.append(
            [
                f"{one.seconds:,.0f}",
                f"{one.delivered:,}",
                f"{delivered / seconds:,.0f}" if seconds else "",
                f"{one.pruned:,}",
                f"{one.live_rows:,}",
                f"{one.dead_rows:,}",
                f"{one.tables / 2**20:,.0f}",
                f"{one.indexes / 2**20:,.0f}",
                f"{one.autovacuums:,}",
                f"{(one.wal - last.wal) / delivered:,.0f}" if delivered else "",
            ]
        )
        last = one
    head = ["seconds", "delivered", "a second", "pruned", "rows", "dead rows", "tables, MiB"]
    tables, indexes = (
        growth([getattr(one, name) for one in soak.samples]) for name in ("tables", "indexes")
    )
    verdict = "flat" if max(tables, indexes) <= FLAT else "**growing**"
    return (
        table([*head, "indexes, MiB", "autovacuums", "WAL bytes each"], rows)
        + f"\n\n{soak.missing} missing, {soak.duplicates} duplicates, {soak.unfinished} not"
        f" succeeded. In the last third the tables were at most {tables:.2f} × as large as in the"
        f" one before, the indexes {indexes:.2f} ×: {verdict}."
    )


class Keeper:
    """Prunes over and over in a thread, by a process of its own."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.pruned = 0

    def prune(self) -> None:
        self.pruned += self._child.ask(do="prune")["deliveries"]

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PRUNE_SECONDS):
            self.prune()


class Gauge:
    """Takes samples."""

    def __init__(self, bench: Trial, phase: Phase, keeper: Keeper) -> None:
        self._bench = bench
        self._phase = phase
        self._keeper = keeper
        self._began = time.monotonic()
        self._wal = bench.wal_bytes()
        self.samples: list[Sample] = []

    def sample(self) -> None:
        with self._bench.place.connect() as connection:
            row = connection.execute(_SIZES).fetchone()
        assert row is not None
        self.samples.append(
            Sample(
                time.monotonic() - self._began,
                self._phase.arrived(),
                *(int(value) for value in row),
                wal=self._bench.wal_bytes() - self._wal,
                pruned=self._keeper.pruned,
            )
        )


def soak(place: Place, deliveries: int, keep: float) -> Soak:
    """So many deliveries, each removed `keep` seconds after it succeeded, or soon after."""
    os.environ["WEBHOOKS_KEEP_SUCCEEDED_DAYS"] = f"{keep / 86400:.6f}"
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, SUBSCRIPTIONS, SHARED)
        other = bench.publisher("housekeeping publisher")
        bench.start_workers()
        plan = to_all(SUBSCRIPTIONS)
        warm_up(bench, receiver, publisher, **plan)
        phase, keeper = Phase(bench, receiver), Keeper(other)
        gauge = Gauge(bench, phase, keeper)
        published, next_sample = 0, deliveries // SAMPLES
        while published < deliveries:
            events = min(EVENTS_A_ROUND, (deliveries - published) // SUBSCRIPTIONS)
            phase.publish(publisher, **plan, events=events, batch=100, seed=published)
            published += events * SUBSCRIPTIONS
            phase.wait(published - BACKLOG)
            if phase.arrived() >= next_sample:
                gauge.sample()
                next_sample += deliveries // SAMPLES
        phase.wait(deliveries)
        bench.wait_until_recorded()
        gauge.sample()
        keeper.end()
        _prune_the_rest(place, keeper, keep)
        gauge.sample()
        missing, duplicates = compare(
            (event.id for event in phase.events), phase.lines().splitlines(), SUBSCRIPTIONS
        )
        return Soak(
            machine=Machine.this(),
            when=now_text(),
            keep_seconds=keep,
            missing=missing,
            duplicates=duplicates,
            unfinished=_count(place, "status <> 'succeeded'"),
            samples=gauge.samples,
        )


def _prune_the_rest(place: Place, keeper: Keeper, keep: float) -> None:
    """Until everything is past its time, and gone."""

    def gone() -> bool:
        keeper.prune()
        return _count(place, "status = 'succeeded'") == 0

    wait_until(gone, 10 * keep + 60, "prune removes what is past its time")


def _count(place: Place, condition: str) -> int:
    with place.connect() as connection:
        row = connection.execute(
            f"SELECT count(*) FROM deliveries_delivery WHERE {condition}"
        ).fetchone()
    return int(row[0]) if row else 0


def compare(events: Iterable[str], log: Iterable[str], receivers: int) -> tuple[int, int]:
    """Missing and duplicates, if each event was for each of so many paths, `/0` and on."""
    seen = dict.fromkeys(events, 0)
    duplicates = 0
    for line in log:
        _, path, name = line.split(" ", 2)
        bit = 1 << int(path[1:])
        duplicates += bool(seen[name] & bit)
        seen[name] |= bit
    return sum(receivers - paths.bit_count() for paths in seen.values()), duplicates
