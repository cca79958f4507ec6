"""Receivers that are dead, silent or slow, and what their neighbours notice of it.

The healthy lanes are measured without and with the bad ones in the same run, on the same
processes: before, among and after them. Each side's p99 is the median of those of its phases, so
that a hiccup of the machine decides nothing; nor does the tenth of a second in which more than a
thousand requests, begun together, time out together. The table gives the p99 over all of a side's
time, too.

What is compared are milliseconds, so what others do on the same machine is kept out. Nothing
waits for the disk, which may take a tenth of a second whenever it likes. A phase in which the
hypervisor gave more than a fiftieth of the processors' time to others is measured again: at a
tenth, every p99 is twice what it was.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import pytest
import redis
from django.conf import settings as django_settings
from django.db import connection

from subscriptions import circuit
from tests.faults.invariants import check_invariants
from tests.faults.load import percentile
from tests.faults.report import Row
from tests.faults.waiting import eventually, holds_within
from tests.faults.world import World
from webhooks_project.receiver import Answer

HEALTHY = 50
RATE = 50.0
PHASE = 4.0
QUIET_PHASES, LOUD_PHASES = 2, 5
MOST_STOLEN = 0.02
DUE = 10_000
SLOW, SLOW_RATE = 10, 15.0
# The p99 of the healthy with the bad ones about, over that without them.
MOST = 1.3
# Beside a few milliseconds, so much more is no harm, in seconds: a slice of Python and a commit.
ROOM = 0.005
BESIDE = f"{1000 * ROOM:g} ms more"
DEADLINE_SLACK = 0.5

# As in production: ten seconds for a request, retries after 1, 2 and 4.
PRODUCTION = {
    "request_timeout": 10,
    "time_slice": 5,
    "sweep_interval": 5,
    "quick_retries": "1,2,4",
}


@pytest.fixture(autouse=True)
def without_the_disk(world: World) -> Iterator[None]:
    """Commits and the broker's log are written, and not waited for."""
    broker = redis.Redis.from_url(django_settings.REDIS_URL)
    with world.postgresql.operator() as maintenance, broker:
        waits = broker.config_get("appendfsync")
        try:
            maintenance.execute("ALTER SYSTEM SET fsync = off")
            maintenance.execute("SELECT pg_reload_conf()")
            broker.config_set("appendfsync", "no")
            yield
        finally:
            maintenance.execute("ALTER SYSTEM RESET fsync")
            maintenance.execute("SELECT pg_reload_conf()")
            broker.config_set("appendfsync", waits["appendfsync"])


def processor_time() -> tuple[int, int]:
    """What the hypervisor gave to others so far, and all of it, in ticks of all processors."""
    user, nice, system, idle, iowait, irq, softirq, steal, *_ = (
        int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:]
    )
    return steal, user + nice + system + idle + iowait + irq + softirq + steal


class Neighbourhood:
    """Fifty healthy lanes, measured phase by phase."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.topics = [f"healthy.{n}" for n in range(HEALTHY)]
        self.site = world.receivers.site()
        for topic in self.topics:
            world.subscribe(self.site, [topic])

    def measure(self, phases: int) -> list[list[float]]:
        """Seconds from the call of `publish` to the arrival, for each phase of steady load.

        Of up to half as many phases again, those in which the machine was most its own.
        """
        measured: list[tuple[float, list[float]]] = []
        while len(measured) < phases * 3 // 2:
            measured.append(self._phase())
            if sum(stolen <= MOST_STOLEN for stolen, _ in measured) == phases:
                break
        measured.sort(key=itemgetter(0))
        return [delays for _, delays in measured[:phases]]

    def _phase(self) -> tuple[float, list[float]]:
        before, seen = len(self.world.ledger.accepted), len(self.world.receivers.requests)
        stolen, total = processor_time()
        with self.world.load(RATE, self.topics):
            holds_within(lambda: False, PHASE)
        stolen_after, total_after = processor_time()
        published = self.world.ledger.accepted[before:]
        began = {one.id: one.began for one in published if one.topic in self.topics}
        arrived: dict[str, float] = {}

        def all_arrived() -> bool:
            for one in self.world.receivers.requests[seen:]:
                if one.id in began:
                    arrived.setdefault(one.id, one.at)
            return len(arrived) == len(began)

        eventually(all_arrived, "the healthy deliveries")
        delays = [at - began[event_id] for event_id, at in arrived.items()]
        return (stolen_after - stolen) / (total_after - total), delays


def warm_up(neighbourhood: Neighbourhood) -> None:
    """Until connections and caches are warm; and have the tables analysed while next to nothing
    is in them: from then on, until PostgreSQL does it again, that is what it makes its plans by."""
    neighbourhood.measure(2)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")


def compare(
    measured: Row, without: list[list[float]], among: list[list[float]], **more: object
) -> None:
    """Put both into the table, and fail if the healthy suffer."""
    quiet, loud = (
        statistics.median(percentile(phase, 0.99) for phase in side) for side in (without, among)
    )
    middle = [1000 * statistics.median(itertools.chain(*side)) for side in (without, among)]
    measured.add(
        healthy_p99_without=f"{1000 * quiet:.0f} ms",
        p99_with=f"{1000 * loud:.0f} ms",
        ratio=f"{loud / quiet:.2f}",
        over_all_the_time=" and ".join(
            f"{1000 * percentile(list(itertools.chain(*side)), 0.99):.0f} ms"
            for side in (without, among)
        ),
        median=f"{middle[0]:.1f} and {middle[1]:.1f} ms",
        samples=f"{sum(map(len, without))} and {sum(map(len, among))}",
        **more,
    )
    assert loud <= max(MOST * quiet, quiet + ROOM)


@pytest.mark.alone
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "holes",
    [
        pytest.param(
            1,
            marks=pytest.mark.fault(
                f"{DUE:,} deliveries for a black-holed receiver, next to {HEALTHY} healthy ones",
                f"the healthy p99 is at most {MOST} times what it is without, or {BESIDE}",
            ),
        ),
        pytest.param(
            1000,
            marks=pytest.mark.fault(
                f"ten deliveries each for 1,000 black-holed receivers, next to {HEALTHY} healthy "
                "ones",
                "the same",
            ),
        ),
    ],
)
def test_black_holes_slow_nobody_else_down(world: World, measured: Row, holes: int) -> None:
    world.configure(**PRODUCTION)
    neighbourhood = Neighbourhood(world)
    url = world.receivers.silent()
    dark = [f"dark.{n}" for n in range(holes)]
    for name in dark:
        world.subscribe(url, [name], name=name, recovery="manual")
    world.installation.standard()
    warm_up(neighbourhood)
    without = neighbourhood.measure(QUIET_PHASES)
    # All of a receiver together: each lane begins with as many requests as it may.
    world.ledger.publish_many([dark[n * holes // DUE] for n in range(DUE)])
    among = neighbourhood.measure(LOUD_PHASES)
    attempts = world.attempts_by_outcome(dark)
    states = world.states(dark)
    circuit.pause([world.lanes[name].id for name in dark])
    without += neighbourhood.measure(QUIET_PHASES)
    compare(
        measured,
        without,
        among,
        time_outs_meanwhile=attempts.get("timeout", 0),
        tripped_meanwhile=states.get("tripped", 0),
    )
    assert set(attempts) == {"timeout"}
    world.wait_until_settled()
    check_invariants(world, replayed=False)


@pytest.mark.alone
@pytest.mark.timeout(240)
@pytest.mark.fault(
    "receivers that drip a byte a second, that answer after 9 s, that never end the handshake; "
    f"{SLOW} lanes of each, next to {HEALTHY} healthy ones",
    f"deadline of 10 s kept within {DEADLINE_SLACK} s; the healthy p99 at most {MOST} times, "
    f"or {BESIDE}",
)
def test_slow_receivers_are_cut_off_and_slow_nobody_else_down(world: World, measured: Row) -> None:
    world.configure(**PRODUCTION)
    neighbourhood = Neighbourhood(world)
    late = world.receivers.site(lambda _: Answer(delay=9))
    kinds = {
        "drip": world.receivers.dripping(),
        "late": late.url,
        "handshake": world.receivers.silent().replace("http:", "https:"),
    }
    slow = {kind: [f"{kind}.{n}" for n in range(SLOW)] for kind in kinds}
    for kind, names in slow.items():
        for name in names:
            world.subscribe(kinds[kind], [name], name=name, recovery="manual")
    every = [name for names in slow.values() for name in names]
    # As many events are published in the phases without the slow, only for somebody else.
    others = [f"other.{n}" for n in range(SLOW)]
    for name in others:
        world.subscribe(neighbourhood.site, [name], name=name)
    world.installation.standard()
    with world.load(SLOW_RATE, others):
        warm_up(neighbourhood)
        without = neighbourhood.measure(QUIET_PHASES)
    with world.load(SLOW_RATE, every):
        among = neighbourhood.measure(LOUD_PHASES)
    circuit.pause([world.lanes[name].id for name in every])
    eventually(lambda: late.in_flight.total() == 0, "the last answers after 9 s")
    with world.load(SLOW_RATE, others):
        without += neighbourhood.measure(QUIET_PHASES)
    world.wait_until_settled()
    for kind in ("drip", "handshake"):
        assert set(world.attempts_by_outcome(slow[kind])) == {"timeout"}
    assert set(world.attempts_by_outcome(slow["late"])) == {"success"}
    durations = world.durations(slow["drip"] + slow["handshake"])
    assert min(durations) >= 10 - DEADLINE_SLACK
    assert max(durations) <= 10 + DEADLINE_SLACK
    compare(
        measured,
        without,
        among,
        cut_off=len(durations),
        between=f"{min(durations):.2f} and {max(durations):.2f} s",
        answered_after_9_s=world.attempts_by_outcome(slow["late"])["success"],
    )
    check_invariants(world, replayed=False)
