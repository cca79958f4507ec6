"""The name servers of one customer are dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.invariants import check_invariants
from tests.faults.load import percentile
from tests.faults.report import Row
from tests.faults.resolver import NameServer, NotPermitted
from tests.faults.waiting import PATIENCE, eventually, holds_within
from tests.faults.world import World
from webhooks_project.programs import DELIVER_QUEUES, RECOVER_QUEUES

DEAD = 64
RATE = 20.0
SECONDS = 12.0
WITHIN = 2.0


@pytest.fixture
def name_server(tmp_path: Path) -> Iterator[NameServer]:
    try:
        made = NameServer(tmp_path, "alive.example")
    except NotPermitted as reason:
        pytest.skip(str(reason))
    yield made
    made.close()


@pytest.mark.timeout(180)
@pytest.mark.fault(
    f"the name servers of one customer never answer, for {DEAD} names; the name of a healthy host "
    "is looked up anew each second, another one for the first time",
    f"the healthy are delivered to, each within {WITHIN:g} s, and never fail",
)
def test_dead_name_servers_of_one_customer_stop_nobody_else(
    world: World, measured: Row, name_server: NameServer
) -> None:
    world.configure(dns_cache=1, circuit_threshold=1000, slow_retries="1,1,1,1,1,1,1,1")
    site = world.receivers.site()
    url = site.url.replace("127.0.0.1", "{}")
    world.subscribe(url.format("known.alive.example"), ["known"], name="known")
    world.subscribe(url.format("new.alive.example"), ["new"], name="new")
    dead = [f"dead.{n}" for n in range(DEAD)]
    for n, name in enumerate(dead):
        world.subscribe(url.format(f"n{n}.dead.example"), [name], name=name)
    # One process for all: they share its look-ups.
    world.installation.worker(queues=f"{DELIVER_QUEUES},{RECOVER_QUEUES}", wrap=name_server.wrap)
    world.installation.beat()
    world.ledger.publish("known")
    assert world.receivers.wait_for(1, PATIENCE), "nothing is delivered"

    world.ledger.publish_many(dead * 3)
    names = {f"n{n}.dead.example" for n in range(DEAD)}
    eventually(lambda: len(names & name_server.asked.keys()) >= DEAD // 8, "dead look-ups")
    asked = name_server.asked["known.alive.example"]
    with world.load(RATE, ["known"]):
        holds_within(lambda: False, SECONDS / 2)
        world.ledger.publish("new")
        holds_within(lambda: False, SECONDS / 2)
    eventually(
        lambda: world.wanted_of("known", "new") <= set(world.receivers.arrivals()),
        "the healthy being delivered to",
    )
    waits = world.waits_after()
    outcomes = world.attempts_by_outcome(["known", "new"])
    failed = world.attempts_by_outcome(dead)
    asked = name_server.asked["known.alive.example"] - asked
    assert set(outcomes) == {"success"}
    assert max(waits) <= WITHIN
    assert asked >= SECONDS / 2, "the healthy name was not looked up anew"
    assert "success" not in failed
    assert sum(failed.values()) > 0
    world.pause_all()
    world.wait_until_settled()
    check_invariants(world, replayed=False)
    measured.add(
        healthy_deliveries=sum(outcomes.values()),
        failed=0,
        slowest=f"{max(waits):.2f} s",
        median=f"{1000 * percentile(waits, 0.5):.0f} ms",
        looked_up_meanwhile=asked,
        failures_of_the_dead=", ".join(f"{count} {name}" for name, count in failed.items()),
    )
