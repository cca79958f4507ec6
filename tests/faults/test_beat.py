"""Beat, which only runs the sweep: away, doubled, and sweeps that run into each other."""

from __future__ import annotations

import threading
import time

import pytest
import redis
from django.conf import settings
from django.db import connection

from deliveries.keeping.sweep import sweep
from deliveries.waking.wakeups import BELL_SECONDS
from subscriptions.conf import conf
from tests.faults.invariants import check_invariants
from tests.faults.report import Row
from tests.faults.test_workers import slowly
from tests.faults.waiting import holds_within
from tests.faults.world import World

LANES = 30
RATE = 40.0
SLACK = 5.0


@pytest.fixture
def topics(world: World) -> list[str]:
    site = world.receivers.site(slowly)
    topics = [f"beat.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    return topics


@pytest.mark.fault(
    "beat killed while wake-ups are lost (FLUSHALL each second), and started again 5 s later",
    "nothing stalls for longer than the bell (2 s) and one sweep after it is back",
)
def test_without_a_beat_lost_wake_ups_wait_for_its_return(
    world: World, topics: list[str], measured: Row
) -> None:
    *_, beat = world.installation.standard()
    with redis.Redis.from_url(settings.REDIS_URL) as client, world.load(RATE, topics):
        assert world.receivers.wait_for(LANES, 60)
        beat.kill()
        for _ in range(5):
            holds_within(lambda: False, 1.0)
            client.flushall()
    world.installation.start_again([beat])
    settled = world.wait_until_settled()
    found = check_invariants(world)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert (found.undelivered, found.duplicates, found.unknown) == (0, 0, 0)
    bound = BELL_SECONDS + conf().sweep_interval
    assert settled <= bound + SLACK
    measured.add(
        events=found.accepted,
        sent_twice=found.duplicates,
        all_settled_after=f"{settled:.1f} s",
        bound=f"{bound:g} s",
    )


@pytest.mark.fault(
    "two beats at once, and 200 sweeps in four threads besides, under load",
    "nothing is sent twice because of it",
)
def test_sweeps_at_once_send_nothing_twice(world: World, topics: list[str], measured: Row) -> None:
    world.installation.standard()
    world.installation.beat()
    began = time.monotonic()

    def sweep_often() -> None:
        for _ in range(50):
            sweep()
        connection.close()

    with world.load(RATE, topics):
        sweepers = [threading.Thread(target=sweep_often) for _ in range(4)]
        for one in sweepers:
            one.start()
        for one in sweepers:
            one.join(60)
        assert world.receivers.wait_for(5 * LANES, 60)
        holds_within(lambda: time.monotonic() - began > 5, 10)
    settled = world.wait_until_settled()
    found = check_invariants(world)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert (found.undelivered, found.duplicates, found.unknown) == (0, 0, 0)
    measured.add(
        events=found.accepted, sent_twice=found.duplicates, all_settled_after=f"{settled:.1f} s"
    )
