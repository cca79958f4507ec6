"""The scenarios: each makes an installation, puts a load on it, and says what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from children import Child
from measuring import percentile
from phase import Measured, Phase, merged
from place import Place, Receiver
from trial import Trial, trial

# Subscriptions that share a topic, and subscriptions with a topic of their own each.
SHARED = "order.*"
SHARED_TOPIC = "order.created"
OWN = "customer.{n}.>"
OWN_TOPIC = "customer.{n}.order.created"

WIDE = 5000
# Events a second where the load is steady.
STEADY = 50.0


@dataclass(frozen=True)
class Sizes:
    """How much of each scenario is run."""

    backlog: int
    wide_events: int
    live_events: int
    narrow_subscriptions: int
    narrow_events: int
    narrow_in_threads: int
    narrow_in_hundreds: int
    matches: int
    steady_seconds: float
    scale_seconds: float
    reference: int
    """Deliveries of the reference package's backlog; its other scenarios have less."""


FULL = Sizes(
    backlog=100_000,
    wide_events=10,
    live_events=1000,
    narrow_subscriptions=20_000,
    narrow_events=4000,
    narrow_in_threads=10_000,
    narrow_in_hundreds=20_000,
    matches=100_000,
    steady_seconds=20.0,
    scale_seconds=5.0,
    reference=2000,
)
QUICK = Sizes(
    backlog=20_000,
    wide_events=2,
    live_events=200,
    narrow_subscriptions=4000,
    narrow_events=600,
    narrow_in_threads=1600,
    narrow_in_hundreds=4000,
    matches=20_000,
    steady_seconds=4.0,
    scale_seconds=2.0,
    reference=400,
)


def backlog(
    place: Place, deliveries: int, subscriptions: int = 20, after: Callable[[], None] | None = None
) -> Measured:
    """Everything is published before a worker runs; then the worker drains it.

    The clock starts with the first arrival. `after` is called while the database is still there.
    """
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, subscriptions, SHARED)
        phase = Phase(bench, receiver)
        said = phase.publish(
            publisher, **to_all(subscriptions), events=deliveries // subscriptions, batch=100
        )
        place.checkpoint()
        bench.start_workers()
        phase.wait(1)
        phase.cpu_before = bench.cpu()  # what the workers spent on starting is not part of it
        found = phase.measured(
            "backlog", from_first_arrival=True, publish_seconds=said["ended"] - said["began"]
        )
        if after is not None:
            after()
        found.figures.update(bench.rows())
        return found


def observed(place: Place, deliveries: int, rounds: int, subscriptions: int = 20) -> Measured:
    """Backlogs that are drained, by turns, by a worker that counts, rolls up and logs nothing,
    and by one as it is: the processor time of each, which is the median of its turns.

    The first backlog is drained to fill the tables, and counts for neither.
    """
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, subscriptions, SHARED)
        phases: dict[bool, list[Measured]] = {False: [], True: []}
        # What changes with time hits both alike: without, with, with, without, …
        turns = [bool(turn % 2) ^ bool(turn // 2 % 2) for turn in range(2 * rounds)]
        for number, observing in enumerate([True, *turns]):
            bench.wrapper = None if observing else "unobserved.py"
            phase = Phase(bench, receiver)
            events = deliveries // subscriptions // (2 * rounds)
            phase.publish(publisher, **to_all(subscriptions), events=events, batch=100)
            place.checkpoint()
            bench.start_workers()
            phase.wait(1)
            phase.cpu_before = bench.cpu()
            found = phase.measured("observed", from_first_arrival=True)
            bench.stop_workers()
            if number:
                phases[observing].append(found)
        with_it, without = (
            median(sum(found.cpu.values()) / found.deliveries for found in phases[observing])
            for observing in (True, False)
        )
        figures = {"cpu_with": with_it, "cpu_without": without}
        return replace(merged(phases[True]), figures=figures)


def wide(place: Place, events: int, subscriptions: int = WIDE) -> Measured:
    """Events that match thousands of subscriptions each, published one after the other."""
    return _one_after_the_other(place, "wide", events, subscriptions)


def live(place: Place, events: int, subscriptions: int = 20) -> Measured:
    """Events that match a few subscriptions each, published one after the other."""
    return _one_after_the_other(place, "live", events, subscriptions)


def _one_after_the_other(place: Place, name: str, events: int, subscriptions: int) -> Measured:
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, subscriptions, SHARED)
        bench.start_workers()
        warm_up(bench, receiver, publisher, **to_all(subscriptions))
        found = run_phase(bench, name, receiver, publisher, **to_all(subscriptions), events=events)
        found.figures.update(bench.rows())
        return found


def narrow(place: Place, sizes: Sizes) -> list[Measured]:
    """Each event is for one of thousands of subscriptions.

    Published one after the other, by eight threads in two processes, and in hundreds.
    """
    targets = to_each(sizes.narrow_subscriptions)
    found = []
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, sizes.narrow_subscriptions, OWN)
        other = bench.publisher("publisher 2")
        bench.start_workers()
        for each in (publisher, other):
            warm_up(bench, receiver, each, **targets)
        both, one = (publisher, other), (publisher,)
        plans: tuple[tuple[str, tuple[Child, ...], int, dict[str, int]], ...] = (
            ("narrow", one, sizes.narrow_events, {}),
            ("narrow, 8 threads", both, sizes.narrow_in_threads, {"threads": 4}),
            ("narrow, in hundreds", one, sizes.narrow_in_hundreds, {"batch": 100}),
        )
        for name, publishers, events, plan in plans:
            phase = {**targets, **plan, "events": events}
            found.append(run_phase(bench, name, receiver, *publishers, **phase))
        rows = bench.rows()
        for measured in found:
            measured.figures.update(rows)
    return found


def matches(place: Place, count: int) -> Measured:
    """One event for very many subscriptions, just loaded, before PostgreSQL has looked at them.

    Then ten for other subscriptions, one after the other, while it is being delivered.
    """
    others = 10
    with trial(place) as bench:
        keep_statistics_stale(place)
        receiver, publisher = subscribed(bench, others, OWN)
        bench.start_workers()
        warm_up(bench, receiver, publisher, **to_each(others))
        subscribe(publisher, receiver, count, SHARED, first=others)
        phase = Phase(bench, receiver)
        said = phase.publish(publisher, **to_all(count, first=others), events=1)
        phase.publish(publisher, **to_each(others), events=others, rate=count / 50_000)
        found = phase.measured(f"{count:,} matches", publish_longest=said["publish_longest"])
        waits = phase.latencies(range(others))
        found.figures.update({"others_longest": max(waits, default=math.inf), **bench.rows()})
        return found


def keep_statistics_stale(place: Place) -> None:
    """Nothing is analyzed or vacuumed in this database, as just after a load."""
    with place.connect() as connection:
        connection.execute(
            """
            DO $$ DECLARE name regclass; BEGIN
            FOR name IN SELECT oid FROM pg_class
                WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
            LOOP EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = off)', name);
            END LOOP; END $$
            """
        )


def latency(place: Place, seconds: float, subscriptions: int = 20) -> list[Measured]:
    """Fifty events a second to healthy receivers: each for one of them, then each for all."""
    with trial(place) as bench:
        receiver, publisher = subscribed(bench, subscriptions, OWN)
        subscribe(publisher, receiver, subscriptions, SHARED, first=subscriptions)
        bench.start_workers()
        together = to_all(subscriptions, first=subscriptions)
        for targets in (to_each(subscriptions), together):
            warm_up(bench, receiver, publisher, **targets)
        steady = {"events": round(STEADY * seconds), "rate": STEADY}
        return [
            run_phase(bench, "latency", receiver, publisher, **to_each(subscriptions), **steady),
            run_phase(bench, "latency, 20 each", receiver, publisher, **together, **steady),
        ]


def run_phase(
    bench: Trial, name: str, receiver: Receiver, *publishers: Child, **plan: Any
) -> Measured:
    """Publish by plan, wait until all is delivered, and add what can be said of the times."""
    phase = Phase(bench, receiver)
    said = phase.publish(*publishers, **plan)
    found = phase.measured(name)
    found.figures.update({key: value for key, value in said.items() if key.startswith("publish")})
    found.figures["publishing_seconds"] = said["ended"] - said["began"]
    found.figures.update(spread(phase.latencies()))
    return found


def spread(latencies: list[float]) -> dict[str, float]:
    return {
        "latency_p50": percentile(latencies, 50),
        "latency_p99": percentile(latencies, 99),
        "latency_longest": max(latencies, default=0.0),
    }


def subscribed(bench: Trial, subscriptions: int, pattern: str) -> tuple[Receiver, Child]:
    """A receiver with so many subscriptions, and an application."""
    receiver, publisher = bench.receiver(), bench.publisher()
    subscribe(publisher, receiver, subscriptions, pattern)
    return receiver, publisher


def subscribe(
    publisher: Child,
    receiver: Receiver,
    count: int,
    *patterns: str,
    first: int = 0,
    tenant: str = "",
) -> None:
    """Make the subscriptions `first` to `first + count - 1` of this receiver."""
    publisher.ask(
        do="subscribe",
        first=first,
        count=count,
        ports=receiver.ports,
        patterns=patterns,
        tenant=tenant,
    )


def to_all(count: int, first: int = 0) -> dict[str, Any]:
    """Events that go to each of these subscriptions."""
    return {"topic": SHARED_TOPIC, "first": first, "count": count}


def to_each(count: int, first: int = 0) -> dict[str, Any]:
    """Events that go to one of these subscriptions each."""
    return {"topic": OWN_TOPIC, "first": first, "count": count}


def warm_up(bench: Trial, receiver: Receiver, publisher: Child, **targets: Any) -> None:
    """What happens once in a process's life is not what is measured: indexes, connections."""
    phase = Phase(bench, receiver)
    phase.publish(publisher, **targets, events=1 if targets["topic"] == SHARED_TOPIC else 50)
    phase.wait()
    bench.wait_until_recorded()
