"""The wall clock of a machine, stepped under the processes that run on it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings

from subscriptions.conf import conf
from tests.faults.clock import Clock, NotPermitted
from tests.faults.invariants import check_invariants
from tests.faults.report import Row
from tests.faults.waiting import eventually, holds_within
from tests.faults.world import World
from webhooks_project.programs import RECOVER_QUEUES
from webhooks_project.receiver import Answer

LANES = 20
QUIET = [f"quiet.{n}" for n in range(5)]
RATE = 30.0
HOUR = 3600
PHASE = 5.0
# A sweep by a beat that looks once a second, and whatever else the machine does.
STALL = 5.0


@pytest.fixture
def clock(tmp_path: Path) -> Iterator[Clock]:
    try:
        made = Clock(tmp_path)
    except NotPermitted as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


def until_arrived(world: World, event_ids: set[str], when: str) -> float:
    """Seconds until all of these came, which only the sweep can find."""
    return eventually(
        lambda: event_ids <= {one.id for one in world.receivers.requests},
        f"the sweep finding what lost its wake-up, {when}",
    )


@pytest.mark.timeout(240)
@pytest.mark.fault(
    "clock of one deliver worker, the recover worker and beat stepped an hour forward, back, back "
    "and forward again, under load, wake-ups lost after each step",
    "no burst: nothing is sent twice or before its time; no stall: the sweep goes on",
)
def test_a_stepped_clock_makes_neither_a_burst_nor_a_stall(
    world: World, measured: Row, clock: Clock
) -> None:
    site = world.receivers.site()
    failing = world.receivers.site(lambda _: Answer(500))
    topics = [f"clock.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    for name in QUIET:
        world.subscribe(site, [name], name=name)
    world.configure(quick_retries="1", slow_retries="3600", circuit_threshold=1000)
    world.subscribe(failing, ["failing"], name="failing")
    stepped = [
        world.installation.worker("deliver1", variables=clock.variables),
        world.installation.worker("recover", RECOVER_QUEUES, variables=clock.variables),
    ]
    world.installation.worker("deliver2")
    world.installation.beat(variables=clock.variables)
    steps, stalls = [], []
    with redis.Redis.from_url(settings.REDIS_URL) as client, world.load(RATE, topics):
        for offset in (HOUR, 0, -HOUR, 0):
            seen = len(world.receivers.requests)
            assert world.receivers.wait_for(seen + LANES, 60), "nothing is delivered any more"
            world.ledger.publish("failing")
            clock.step(offset)
            steps.append(time.monotonic())
            with stepped[0].frozen(), world.installation.named("deliver2").frozen():
                # Nothing else comes for these lanes: only the sweep can find them.
                quiet = [world.ledger.publish(name) for name in QUIET]
                client.flushall()
            ids = {one.id for one in quiet if one is not None}
            stalls.append(until_arrived(world, ids, f"clock stepped to {offset:+d} s"))
            holds_within(lambda: time.monotonic() - steps[-1] > PHASE, 2 * PHASE)
    world.wait_until_settled()
    found = check_invariants(world)
    assert (found.duplicates, found.unknown) == (len(steps), 0), "more than the retries came twice"
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    # One quick retry each, a second later; the slow one is an hour away by the database's clock.
    retries = world.gaps("failing")
    assert len(retries) == len(steps)
    assert min(retries) >= 0.8
    assert max(retries) <= 1.2 + conf().sweep_interval + STALL
    assert max(stalls) <= conf().sweep_interval + STALL
    measured.add(
        events=found.accepted,
        sent_twice=found.duplicates - len(steps),
        longest_stall=f"{max(stalls):.1f} s",
        retries_due_after_1_s_came_after=f"{min(retries):.1f} to {max(retries):.1f} s",
    )
