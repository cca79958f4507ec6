"""One load on an installation, from the first `publish` until all of it is recorded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from children import Child
from measuring import Arrivals, Delivery, compare_arrivals
from place import Receiver
from trial import Trial

OURS = "this project"


@dataclass(frozen=True)
class Measured:
    """What one side did in one scenario. Times in seconds."""

    scenario: str
    side: str
    deliveries: int
    seconds: float
    """The time that `rate` is taken from."""
    rate: float
    """Deliveries a second."""
    missing: int
    duplicates: int
    unexpected: int
    recorded: int
    """Deliveries that the side's own tables call delivered, when nothing arrived any more."""
    cpu: dict[str, float]
    """CPU seconds by program."""
    load_before: float
    """The machine's load average (1 minute) at the beginning."""
    figures: dict[str, float] = field(default_factory=dict)
    """What else was measured, by name; times in seconds."""

    @property
    def exact(self) -> bool:
        return not (self.missing or self.duplicates or self.unexpected) and (
            self.recorded == self.deliveries
        )

    @classmethod
    def of(
        cls, scenario: str, arrivals: Arrivals, *, began: float | None, **values: Any
    ) -> Measured:
        """The rate counts from `began` to the last arrival; without, from the first arrival."""
        count, seconds = arrivals.count - 1, arrivals.last - arrivals.first
        if began is not None:
            count, seconds = arrivals.count, arrivals.last - began
        return cls(
            **{"side": OURS, **values},
            scenario=scenario,
            deliveries=arrivals.expected,
            seconds=seconds,
            rate=count / seconds if count > 0 and seconds > 0 else 0.0,
            missing=arrivals.missing,
            duplicates=arrivals.duplicates,
            unexpected=arrivals.unexpected,
        )


@dataclass(frozen=True)
class Published:
    """A line of a ledger: an event for `reach` subscriptions from number `first`."""

    id: str
    first: int
    reach: int
    due: float
    began: float
    returned: float

    @property
    def deliveries(self) -> list[Delivery]:
        return [(f"/{number}", self.id) for number in range(self.first, self.first + self.reach)]


def read_ledger(path: Path) -> list[Published]:
    events = []
    for line in path.read_text().splitlines():
        name, first, reach, *times = line.split()
        events.append(Published(name, int(first), int(reach), *map(float, times)))
    return events


class Phase:
    """Phases of a trial follow one another: each begins when the one before has come to rest."""

    def __init__(self, bench: Trial, receiver: Receiver) -> None:
        self._bench = bench
        self._receiver = receiver
        receiver.arrived.count()
        self._arrived_before = receiver.arrived.lines
        self._offset = receiver.arrived.offset
        self._recorded_before = bench.recorded()
        self._ledgers: list[Path] = []
        self.load_before = os.getloadavg()[0]
        self.cpu_before = bench.cpu()
        self._wal_before = bench.wal_bytes()

    def tell(self, publisher: Child, *, counted: bool = True, **plan: Any) -> None:
        """Have something published; see `publisher.publish`. Its answer is still to be taken.

        What does not count is for another receiver.
        """
        ledger = self._bench.path("ledger")
        ledger.touch()
        if counted:
            self._ledgers.append(ledger)
        publisher.tell(do="publish", ledger=str(ledger), **plan)

    def publish(self, *publishers: Child, events: int, **plan: Any) -> dict[str, float]:
        """The same, the events shared by the publishers; wait until the last call has returned."""
        for number, publisher in enumerate(publishers):
            share = events // len(publishers) + (number < events % len(publishers))
            self.tell(publisher, events=share, **{"seed": number, **plan})
        said: list[dict[str, float]] = [publisher.answer() for publisher in publishers]
        # Of several publishers the slowest: their calls are of one kind.
        return {
            name: (min if name == "began" else max)(one[name] for one in said) for name in said[0]
        }

    @cached_property
    def events(self) -> list[Published]:
        """What was published in this phase. Asked for when the publishers are done."""
        return [event for ledger in self._ledgers for event in read_ledger(ledger)]

    @cached_property
    def expected(self) -> set[Delivery]:
        return {delivery for event in self.events for delivery in event.deliveries}

    def wait(self, wanted: int | None = None) -> None:
        """Until so many have arrived in this phase (default: all), or none does any more."""
        number = len(self.expected) if wanted is None else wanted
        self._bench.wait_for_arrivals(self._receiver, self._arrived_before + number)

    def arrived(self) -> int:
        """How many have arrived in this phase until now."""
        return self._receiver.arrived.count() - self._arrived_before

    def lines(self) -> str:
        """The receiver's log of this phase."""
        with self._receiver.log.open() as log:
            log.seek(self._offset)
            return log.read()

    def arrivals(self) -> Arrivals:
        return compare_arrivals(self.lines(), self.expected)

    def measured(
        self,
        scenario: str,
        *,
        from_first_arrival: bool = False,
        pending: int = 0,
        **figures: float,
    ) -> Measured:
        """Wait until all has arrived and is recorded, and say how it went.

        `pending`: so many deliveries are for receivers that never answer.
        """
        self.wait()
        recorded = self._bench.wait_until_recorded(pending) - self._recorded_before
        cpu = self._bench.cpu_since(self.cpu_before)
        figures |= {
            "wal_bytes": self._bench.wal_bytes() - self._wal_before,
            "worker_memory": self._bench.memory(),
        }
        return Measured.of(
            scenario,
            self.arrivals(),
            began=None if from_first_arrival else min(event.began for event in self.events),
            recorded=recorded,
            cpu=cpu,
            load_before=self.load_before,
            figures=figures,
        )

    def latencies(self, subscriptions: Sequence[int] | None = None) -> list[float]:
        """Seconds from when an event was due to be published to its arrival, one a delivery.

        Of a delivery that came twice, the first; with `subscriptions`, only theirs.
        """
        due = {event.id: event.due for event in self.events}
        wanted = None if subscriptions is None else {f"/{number}" for number in subscriptions}
        seen: set[Delivery] = set()
        found = []
        for line in self.lines().splitlines():
            moment, path, name = line.split(" ", 2)
            if name in due and (wanted is None or path in wanted) and (path, name) not in seen:
                seen.add((path, name))
                found.append(float(moment) - due[name])
        return found


def merged(parts: list[Measured]) -> Measured:
    """Several phases as one; the rate is that of all, over the sum of their times."""
    total: dict[str, Any] = {
        name: sum(getattr(part, name) for part in parts)
        for name in ("deliveries", "seconds", "missing", "duplicates", "unexpected", "recorded")
    }
    programs = dict.fromkeys(name for part in parts for name in part.cpu)
    return replace(
        parts[0],
        **total,
        rate=total["deliveries"] / total["seconds"] if total["seconds"] else 0.0,
        cpu={name: sum(part.cpu.get(name, 0.0) for part in parts) for name in programs},
    )
