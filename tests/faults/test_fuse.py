"""Our own network fails, and with it every receiver at once."""

from __future__ import annotations

import pytest

from subscriptions.circuit.fuse import blown
from subscriptions.circuit.rules import allowed_trips
from subscriptions.conf import conf
from tests.faults.invariants import check_invariants
from tests.faults.receivers import always
from tests.faults.report import Row
from tests.faults.waiting import eventually
from tests.faults.world import World

LANES = 60
THRESHOLD = 2
SLOW = 0.5
ALERT = "suspect our own network"


def alerts(world: World) -> int:
    return world.installation.logs().count(ALERT)


def worst_off(world: World) -> int:
    """How many failed attempts in a row the lane with the fewest has behind it."""
    counts = [world.attempts_by_outcome([name]).get("refused", 0) for name in list(world.lanes)[:5]]
    return min(counts)


@pytest.mark.timeout(240)
@pytest.mark.fault(
    f"a mass failure of our own egress: nothing can connect, {LANES} active subscriptions",
    "no more than max(10, 20 %) trip, one alert says “suspect our own network”; all arrive once "
    "it is back, and circuits trip again as before",
)
def test_a_failure_of_our_own_network_does_not_trip_everyone(world: World, measured: Row) -> None:
    world.configure(
        quick_retries="",
        slow_retries=",".join([str(SLOW)] * 200),
        circuit_threshold=THRESHOLD,
        probe_first=2,
        probe_most=2,
    )
    site = world.receivers.site()
    names = [f"fuse.{n}" for n in range(LANES)]
    for name in names:
        world.subscribe(site, [name], name=name)
    world.installation.standard()
    world.ledger.publish_many(names)
    world.wait_until_settled()
    assert world.statuses() == {"succeeded": LANES}
    most = allowed_trips(LANES, conf().fuse_trips, conf().fuse_share)

    site.stop()
    for name in names:  # one by one, so that they do not all fail in one batch
        world.ledger.publish(name)
    eventually(blown, "the fuse blowing")
    eventually(lambda: worst_off(world) > 2 * THRESHOLD, "everybody failing again and again")
    tripped = world.states(names).get("tripped", 0)
    assert tripped <= most
    assert world.states(names)["active"] == LANES - tripped
    assert alerts(world) == 1
    assert world.fuse_signals() == ["blown"]

    site.start()
    seconds = eventually(
        lambda: world.statuses() == {"succeeded": 2 * LANES}, "everything arriving"
    )
    assert world.states(names) == {"active": LANES}
    assert not blown()
    assert world.fuse_signals() == ["blown", "reset"]

    site.respond = lambda request: always(500 if request.lane == names[0] else 200)(request)
    world.ledger.publish(names[0])
    eventually(lambda: world.states(names[:1]) == {"tripped": 1}, "a trip as before")
    world.pause_all()
    world.wait_until_settled()
    found = check_invariants(world, replayed=False)
    assert world.fuse_signals() == ["blown", "reset"]
    measured.add(
        would_have_tripped=LANES,
        allowed=f"{most:g}",
        tripped=tripped,
        alerts=alerts(world),
        all_arrived_after=f"{seconds:.1f} s",
        attempts=found.requests + world.attempts_by_outcome(names).get("refused", 0),
    )
