"""Scenarios that compare with and without: do some receivers slow down the others?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from children import Child
from measuring import p99_of_stretches, percentile, wait_until
from phase import Measured, Phase, merged
from place import Place, Receiver
from scenarios import OWN, OWN_TOPIC, SHARED, SHARED_TOPIC, STEADY, subscribe, warm_up
from trial import Trial, trial

OTHERS = 100
# Nine events for the busy subscription on each one for the others.
BUSY_RATE = 9 * STEADY
BUSY_BATCH = 45

# The subscriptions of the tenant whose backlog is long, and the events for all of them that make
# it.
FLOODED = 1000
FLOOD = 30

HEALTHY, SILENT = 90, 10

DELAY = 0.05
LANES_A_WORKER = 4


def skewed(place: Place, seconds: float, rounds: int) -> Measured:
    """One subscription gets 90 % of the traffic, 100 others the rest.

    Its events come 45 at a time from an application of their own, the others' one by one, fifty
    a second. By turns without and with the busy one, so that the machine's moods hit both.
    """
    with trial(place) as bench:
        receiver = bench.receiver()
        publisher, busy = bench.publisher(), bench.publisher("busy publisher")
        subscribe(publisher, receiver, OTHERS + 1, OWN)
        bench.start_workers()
        others = {"topic": OWN_TOPIC, "first": 1, "count": OTHERS}
        warm_up(bench, receiver, publisher, **others)
        warm_up(bench, receiver, busy, topic=OWN_TOPIC, first=0, count=1)
        flood = {"events": round(BUSY_RATE * seconds / rounds), "rate": BUSY_RATE}
        flood |= {"topic": OWN_TOPIC, "first": 0, "count": 1, "batch": BUSY_BATCH}
        return _by_turns(
            "skewed", "others", bench, receiver, publisher, others, busy, flood,
            seconds=seconds, rounds=rounds,
        )  # fmt: skip


def tenants(place: Place, seconds: float, rounds: int) -> list[Measured]:
    """One tenant's 1,000 subscriptions have very much; another tenant's 100 get fifty events a
    second.

    By turns without and with it. First it is a backlog, made anew each time: 30,000 deliveries,
    published in a few calls when the other tenant's events begin, so that nothing of the machine
    is left. Then it is nine tenths of a load that the machine carries, as in *skewed*.
    """
    with trial(place) as bench:
        receiver = bench.receiver()
        publisher, flooding = bench.publisher(), bench.publisher("flooding publisher")
        subscribe(publisher, receiver, OTHERS, OWN, tenant="quiet")
        subscribe(publisher, receiver, FLOODED, SHARED, OWN, first=OTHERS, tenant="flooding")
        bench.start_workers()
        quiet = {"topic": OWN_TOPIC, "first": 0, "count": OTHERS, "tenant": "quiet"}
        flooded = {"first": OTHERS, "count": FLOODED, "tenant": "flooding"}
        to_all = {**flooded, "topic": SHARED_TOPIC}
        to_each = {**flooded, "topic": OWN_TOPIC}
        warm_up(bench, receiver, publisher, **quiet)
        warm_up(bench, receiver, flooding, **to_all)
        events = round(BUSY_RATE * seconds / rounds)
        floods = {
            "tenants": {**to_all, "events": FLOOD, "batch": FLOOD // 3},
            "tenants, steady": {
                **to_each, "events": events, "rate": BUSY_RATE, "batch": BUSY_BATCH
            },
        }  # fmt: skip
        return [
            _by_turns(
                name, "quiet", bench, receiver, publisher, quiet, flooding, flood,
                seconds=seconds, rounds=rounds,
            )
            for name, flood in floods.items()
        ]  # fmt: skip


def _by_turns(
    name: str, measured: str, bench: Trial, receiver: Receiver, publisher: Child,
    steadily: dict[str, Any], flooding: Child, flood: dict[str, Any],
    *, seconds: float, rounds: int,
) -> Measured:  # fmt: skip
    """Publish `steadily`, by turns without and with the `flood` beside it.

    The figures are about the subscriptions that are published to steadily, and are called
    `measured` and what they are.
    """
    steady = {"events": round(STEADY * seconds / rounds), "rate": STEADY}
    phases: dict[bool, list[Measured]] = {False: [], True: []}
    waits: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * rounds):
        flooded = bool(turn % 2)
        phase = Phase(bench, receiver)
        if flooded:
            phase.tell(flooding, seed=turn, **flood)
        phase.publish(publisher, seed=turn, **steadily, **steady)
        if flooded:
            flooding.answer()
        phases[flooded].append(phase.measured(name))
        first = steadily["first"]
        waits[flooded] += phase.latencies(range(first, first + steadily["count"]))
    return replace(
        merged(phases[True]),
        figures={
            f"{measured}_p99_without": p99_of_stretches(waits[False]),
            f"{measured}_p99_with": p99_of_stretches(waits[True]),
            f"{measured}_p99_of_all_without": percentile(waits[False], 99),
            f"{measured}_p99_of_all_with": percentile(waits[True], 99),
            f"{measured}_p50_without": percentile(waits[False], 50),
            f"{measured}_p50_with": percentile(waits[True], 50),
            "missing_without": merged(phases[False]).missing,
        },
    )


def slow(place: Place, events: int, seconds: float, rounds: int = 2) -> Measured:
    """Ten receivers of a hundred take requests and never answer.

    How fast the healthy ninety are served by events that go to all hundred, one after the other;
    and how long one of them waits under a steady load. By turns without, when ten more healthy
    ones stand in for the silent, and with; so that the machine's moods hit both, and as much is
    published in both. The silent ones have timed out before the first measurement with them
    begins, so that their retries are under way.
    """
    with trial(place) as bench:
        receiver = bench.receiver()
        silent = bench.receiver("silent receiver", silent=True)
        publisher, other = bench.publisher(), bench.publisher("slow publisher")
        subscribe(publisher, receiver, HEALTHY, "*.created")
        subscribe(publisher, receiver, SILENT, "order.*", first=HEALTHY)
        alone = HEALTHY + SILENT
        subscribe(publisher, receiver, HEALTHY, OWN, first=alone)
        mute = alone + HEALTHY
        subscribe(publisher, silent, SILENT, "all.*", "silent.*", first=mute)
        bench.start_workers()
        hundred = {"topic": SHARED_TOPIC, "first": 0, "count": HEALTHY + SILENT}
        # Of the silent ones no arrival is expected.
        ninety = {"topic": "all.created", "first": 0, "count": HEALTHY}
        one = {"topic": OWN_TOPIC, "first": alone, "count": HEALTHY}
        only_silent = {"topic": "silent.now", "first": mute, "count": SILENT}
        for targets in (hundred, one):
            warm_up(bench, receiver, publisher, **targets)
        steady = {"events": round(STEADY * seconds / rounds), "rate": STEADY}
        # Each goes to ten: a tenth of what the healthy ones get.
        beside = {"events": max(1, round(STEADY * seconds / rounds / 100)), "rate": STEADY / 100}
        burst = max(1, events // rounds)
        served: dict[bool, list[Measured]] = {False: [], True: []}
        waited: dict[bool, list[Measured]] = {False: [], True: []}
        waits: dict[bool, list[float]] = {False: [], True: []}
        pending = 0
        for turn in range(2 * rounds):
            with_silent = bool(turn % 2)
            if turn == 1:
                Phase(bench, receiver).publish(other, **only_silent, events=SILENT)
                pending += SILENT * SILENT
                wait_until(lambda: _timeouts(place) >= SILENT, 60, "the silent ones time out")
            phase = Phase(bench, receiver)
            phase.publish(publisher, **(ninety if with_silent else hundred), events=burst)
            pending += SILENT * burst if with_silent else 0
            served[with_silent].append(phase.measured("slow", pending=pending))
            phase = Phase(bench, receiver)
            if with_silent:
                phase.tell(other, counted=False, **only_silent, **beside)
                pending += SILENT * int(beside["events"])
            phase.publish(publisher, seed=turn, **one, **steady)
            if with_silent:
                other.answer()
            waited[with_silent].append(phase.measured("slow", pending=pending))
            waits[with_silent] += phase.latencies()
        without, with_them = merged(served[False]), merged(served[True])
        return replace(
            merged(served[True] + waited[True]),
            rate=with_them.rate,
            figures={
                "rate_without": without.rate * HEALTHY / (HEALTHY + SILENT),
                "rate_with": with_them.rate,
                "healthy_p99_without": p99_of_stretches(waits[False]),
                "healthy_p99_with": p99_of_stretches(waits[True]),
                "healthy_p99_of_all_without": percentile(waits[False], 99),
                "healthy_p99_of_all_with": percentile(waits[True], 99),
                "missing_without": without.missing + merged(waited[False]).missing,
                "requests_to_silent": float(silent.arrived.count()),
            },
        )


def _timeouts(place: Place) -> int:
    with place.connect() as connection:
        row = connection.execute(
            "SELECT count(*) FROM deliveries_attempt WHERE outcome = 'timeout'"
        ).fetchone()
        return int(row[0]) if row else 0


def scale_out(place: Place, seconds: float) -> list[Measured]:
    """One, two and four workers, with as many times the subscriptions; last, one with them all.

    A receiver answers after 50 ms, and each subscription has ten requests in flight at most, so
    what bounds the rate is waiting, not the processor. The rate is taken from the middle of the
    backlog: while it is drained, not while the first or the last subscriptions are alone.
    """
    found = []
    for workers, share in ((1, 1), (2, 2), (4, 4), (1, 4)):
        with trial(place) as bench:
            receiver, publisher = bench.receiver(delay=DELAY), bench.publisher()
            lanes = LANES_A_WORKER * share
            subscribe(publisher, receiver, lanes, SHARED)
            phase = Phase(bench, receiver)
            events = round(10 / DELAY * seconds)
            phase.publish(
                publisher, topic=SHARED_TOPIC, first=0, count=lanes, events=events, batch=100
            )
            bench.start_workers(workers)
            phase.wait(1)
            phase.cpu_before = bench.cpu()
            name = f"scale out, {workers}" + (" with all" if workers < share else "")
            measured = phase.measured(name, from_first_arrival=True)
            found.append(replace(measured, rate=_rate_of_the_middle(phase.lines())))
    return found


def _rate_of_the_middle(log: str) -> float:
    times = sorted(float(line.split(" ", 1)[0]) for line in log.splitlines())
    first, last = len(times) // 10, len(times) * 8 // 10
    return (last - first) / (times[last] - times[first]) if last > first else 0.0
