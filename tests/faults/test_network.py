"""Bad networks, in a namespace of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.invariants import check_invariants
from tests.faults.report import Row
from tests.faults.waiting import eventually
from tests.faults.wire import NotPermitted, Weather, Wire
from tests.faults.world import World
from webhooks_project.programs import DELIVER_QUEUES, RECOVER_QUEUES

TIMEOUT = 4.0
SLACK = 0.5
EACH = 20

WEATHER = {
    "loss": Weather(loss=0.3),
    "delay": Weather(delay=5.0),
    "drop": Weather(loss=1.0),
    "reset": Weather(reset=True),
    "refuse": Weather(refuse=True),
}
# What each is to be called, and whether it lasts until the deadline.
CALLED = {
    "delay": ("timeout", True),
    "drop": ("timeout", True),
    "reset": ("reset", False),
    "refuse": ("refused", False),
}


@pytest.fixture
def wire() -> Iterator[Wire]:
    try:
        with Wire() as made:
            yield made
    except NotPermitted as reason:
        pytest.skip(str(reason))


@pytest.mark.fault(
    f"networks with 30 % loss, with 5 s delay, that drop everything, that reset; deadline "
    f"{TIMEOUT:g} s",
    f"deadline kept within {SLACK} s, each failure called by its name; through the loss all arrive",
)
def test_bad_networks_are_told_apart_and_never_outlast_the_deadline(
    world: World, measured: Row, wire: Wire
) -> None:
    world.configure(
        request_timeout=TIMEOUT,
        quick_retries="0.1,0.2,0.4",
        slow_retries="0.1,0.1,0.1,0.1",
        circuit_threshold=100,
    )
    for name, weather in WEATHER.items():
        listener, url = wire.listener(weather)
        world.receivers.site(listener=listener)
        world.subscribe(url, [name], name=name, max_in_flight=5)
    world.installation.worker(queues=f"{DELIVER_QUEUES},{RECOVER_QUEUES}", wrap=wire.wrap)
    world.installation.beat()
    world.ledger.publish_many([name for name in WEATHER for _ in range(EACH)])
    eventually(lambda: world.statuses("loss") == {"succeeded": EACH}, "all getting through")
    for name in CALLED:
        eventually(lambda name=name: len(world.durations([name])) >= 5, f"attempts of {name}")
    longest = max(world.durations(list(WEATHER)))
    assert longest <= TIMEOUT + SLACK
    assert set(world.attempts_by_outcome(["loss"])) <= {"success", "timeout"}
    for name, (outcome, to_the_end) in CALLED.items():
        assert set(world.attempts_by_outcome([name])) == {outcome}, name
        if to_the_end:
            assert min(world.durations([name])) >= TIMEOUT - SLACK
    lost, carried = sum(wire.lost.values()), sum(wire.carried.values())
    assert lost > 0
    world.pause_all()
    world.wait_until_settled()
    check_invariants(world, replayed=False)
    measured.add(
        longest_attempt=f"{longest:.2f} s",
        **{name: outcome for name, (outcome, _) in CALLED.items()},
        through_the_loss=f"{EACH} of {EACH}, in {len(world.durations(['loss']))} attempts",
        packets_lost=f"{lost} of {lost + carried}",
    )
