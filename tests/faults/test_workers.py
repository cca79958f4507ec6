"""Workers that are killed, and workers that are replaced by a deployment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection, transaction

from subscriptions.conf import conf
from tests.faults.invariants import check_invariants
from tests.faults.load import percentile
from tests.faults.receivers import Request, never
from tests.faults.report import Row
from tests.faults.waiting import eventually, holds_within
from tests.faults.world import World
from webhooks_project.receiver import Answer

LANES = 30
RATE = 40.0
RANDOM_KILLS, KILLS_OF_A_KIND = 8, 4
# Between the end of a lease and the request: a beat that looks once a second, the sweep, a
# wake-up, a claim; and a worker that has to start, on a machine that does all the rest as well.
SLACK = 5.0


def slowly(request: Request) -> Answer:
    """After 0 to 150 ms, so that a moment at random finds requests at every stage."""
    return Answer(delay=(request.digest[0] / 255) * 0.15)


@contextmanager
def no_attempt_can_be_written() -> Iterator[None]:
    """Claims and settlements wait, requests go on."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("LOCK TABLE deliveries_attempt IN SHARE MODE")
        yield


class Killer:
    """Kills worker groups at given moments and starts them again."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.moments: list[float] = []
        self._chance = random.Random(20)

    def kill(self, *names: str) -> None:
        processes = [self.world.installation.named(name) for name in names]
        for process in processes:
            process.kill()
        self.moments.append(time.monotonic())
        self.world.installation.start_again(processes)

    def at_random(self) -> None:
        """One of the two, some tenths of a second from now."""
        holds_within(lambda: False, self._chance.uniform(0.1, 1.0))
        self.kill(self._chance.choice(["deliver1", "deliver2"]))

    def before_connect(self, name: str) -> None:
        """While its connection is not answered yet."""
        with self.world.receivers.unreachable() as door:
            self.world.subscribe(door.url, [name], name=name)
            self.world.ledger.publish(name)
            eventually(lambda: self._leased(name), "the claim")
            self.kill("deliver1", "deliver2")
        self.world.receivers.serve(door)

    def after_the_request(self, name: str) -> None:
        """While the receiver thinks about its answer."""
        site = self.world.receivers.site(never)
        self.world.subscribe(site, [name], name=name)
        self.world.ledger.publish(name)
        eventually(lambda: site.in_flight[name] == 1, "the request")
        self.kill("deliver1", "deliver2")
        site.respond = slowly

    def before_the_settle(self, name: str) -> None:
        """When the answer is there, and nothing of it is written down yet."""
        site = self.world.receivers.site(lambda _: Answer(delay=0.5))
        self.world.subscribe(site, [name], name=name)
        self.world.ledger.publish(name)
        eventually(lambda: site.in_flight[name] == 1, "the request")
        with no_attempt_can_be_written():
            eventually(lambda: site.in_flight[name] == 0, "the answer")
            for process in ("deliver1", "deliver2"):
                self.world.installation.named(process).kill()
        self.kill("deliver1", "deliver2")

    def _leased(self, name: str) -> bool:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM deliveries_delivery "
                "WHERE subscription_id = %s AND lease_until IS NOT NULL",
                [self.world.lanes[name].id],
            )
            return cursor.fetchone() is not None


@pytest.mark.timeout(240)
@pytest.mark.fault(
    "worker group SIGKILLed at 20 moments under load: 8 at random, 4 each before the connection, "
    "after the request, after the 200 and before the settle",
    "every accepted event arrives; what is sent twice says so in its attempts; recovery within "
    "lease + sweep",
)
def test_workers_killed_at_twenty_moments_lose_nothing(world: World, measured: Row) -> None:
    site = world.receivers.site(slowly)
    topics = [f"kill.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    killer = Killer(world)
    directed: list[Callable[[str], None]] = [
        killer.before_connect,
        killer.after_the_request,
        killer.before_the_settle,
    ]
    with world.load(RATE, topics):
        for turn in range(KILLS_OF_A_KIND):
            for kind in directed:
                kind(f"{kind.__name__}.{turn}")
            for _ in range(RANDOM_KILLS // KILLS_OF_A_KIND):
                killer.at_random()
    assert len(killer.moments) == 20
    last = killer.moments[-1]
    world.wait_until_settled()
    whole = time.monotonic() - last
    found = check_invariants(world)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert found.undelivered == 0
    assert 0 < found.duplicates <= found.unknown
    bound = conf().lease + conf().sweep_interval
    each = world.waits_after(killer.moments)
    assert max(each) <= bound + SLACK
    measured.add(
        events=found.accepted,
        unknown_outcomes=found.unknown,
        sent_twice=found.duplicates,
        slowest_recovery=f"{max(each):.1f} s",
        median=f"{percentile(each, 0.5):.1f} s",
        lease_and_sweep=f"{bound:g} s",
        all_settled_after=f"{whole:.1f} s",
    )


@pytest.mark.timeout(120)
@pytest.mark.fault(
    "SIGTERM under load: all workers replaced twice, one after the other",
    "no unknown outcome where receivers answer in time, nothing sent twice",
)
def test_a_deployment_under_load_sends_nothing_twice(world: World, measured: Row) -> None:
    site = world.receivers.site(slowly)
    topics = [f"deploy.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    endings = []
    with world.load(RATE, topics):
        for _ in range(2):
            for name in ("deliver1", "deliver2", "recover"):
                eventually(lambda: site.in_flight.total() > 0, "requests in flight")
                old = world.installation.named(name)
                old.terminate()
                endings.append(old.wait())
                world.installation.start_again([old])
    world.wait_until_settled()
    found = check_invariants(world)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert (found.undelivered, found.duplicates, found.unknown) == (0, 0, 0)
    measured.add(
        events=found.accepted,
        unknown_outcomes=found.unknown,
        sent_twice=found.duplicates,
        slowest_end_of_a_worker=f"{max(endings):.1f} s",
    )
