"""Retention: how fast `prune` is, and what it does to deliveries meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from growth import FAN_OUT, fill_history
from measuring import cpu_seconds
from phase import Phase
from place import Place
from scenarios import SHARED, subscribed, to_all
from trial import Trial, trial

OLD = 400_000
DRAINED = 20_000
OLDEST_DAYS = 80.0  # and the newest of them 40: all are past the 30 days that are kept


@dataclass(frozen=True)
class Pruning:
    """`prune` alone, and beside a backlog that is being drained."""

    deliveries: int
    events: int
    seconds: float
    cpu: float
    """CPU seconds, PostgreSQL's included."""
    drain_alone: float
    """Deliveries a second while nothing is pruned."""
    drain_beside: float
    pruned_beside: float
    """Deliveries pruned a second while the backlog is drained."""
    missing: int
    duplicates: int

    @property
    def rate(self) -> float:
        return self.deliveries / self.seconds


def pruning(place: Place) -> Pruning:
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, FAN_OUT, SHARED)
        keeper = bench.publisher("housekeeping publisher")
        _fill_old(place)
        before = _cpu(bench, keeper.pid)
        alone = keeper.ask(do="prune")
        cpu = _cpu(bench, keeper.pid) - before
        drained = []
        pruned_beside = 0.0
        for beside in (False, True):
            phase = Phase(bench, receiver)
            phase.publish(
                publisher, **to_all(FAN_OUT), events=DRAINED // FAN_OUT, batch=100, seed=beside
            )
            if beside:
                _fill_old(place)
            place.checkpoint()
            bench.start_workers()
            phase.wait(1)
            if beside:
                keeper.tell(do="prune")
            found = phase.measured("retention", from_first_arrival=True)
            if beside:
                said = keeper.answer()
                pruned_beside = said["deliveries"] / said["seconds"]
            bench.stop_workers()
            drained.append(found)
        return Pruning(
            deliveries=alone["deliveries"],
            events=alone["events"],
            seconds=alone["seconds"],
            cpu=cpu,
            drain_alone=drained[0].rate,
            drain_beside=drained[1].rate,
            pruned_beside=pruned_beside,
            missing=sum(one.missing for one in drained),
            duplicates=sum(one.duplicates + one.unexpected for one in drained),
        )


def _fill_old(place: Place) -> None:
    fill_history(place, 0, OLD // FAN_OUT, OLD // FAN_OUT, days=OLDEST_DAYS)


def _cpu(bench: Trial, pid: int) -> float:
    return cpu_seconds(pid) + cpu_seconds(bench.place.engine_pids()["PostgreSQL"])
