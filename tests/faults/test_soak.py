"""Minutes of mixed traffic, after which nothing may have grown. Run by `make soak`.

Healthy receivers, failing ones, one that never answers and one that flaps; circuits trip and are
probed all the time. The caches are full before the first look.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.growth import Look, grown, line, look, middle
from tests.faults.invariants import check_invariants
from tests.faults.receivers import always, in_turn
from tests.faults.waiting import PATIENCE, holds_within
from tests.faults.world import World

HEALTHY, FAILING, SILENT, FLAPPING = 30, 4, 2, 4
RATE = 50.0
PACE = 2.0
# Fills the workers' caches of event bodies (32 MiB each).
WARM_UP, LARGE = 6000, 16_000


@pytest.mark.timeout(3600)
def test_nothing_grows_in_minutes_of_traffic(world: World, request: pytest.FixtureRequest) -> None:
    minutes: float = request.config.getoption("--soak")
    world.configure(slow_retries=",".join(["1"] * 8), probe_first=2, probe_most=10)
    url = world.receivers.silent()
    failing = world.receivers.site(always(500))
    flapping = world.receivers.site(in_turn([500] * 4 + [200]))
    healthy = world.receivers.site()
    for count, where, kind in (
        (HEALTHY, healthy, "healthy"),
        (FAILING, failing, "failing"),
        (SILENT, url, "silent"),
        (FLAPPING, flapping, "flapping"),
    ):
        for n in range(count):
            world.subscribe(where, [f"{kind}.{n}"], name=f"{kind}.{n}")
    topics = list(world.lanes)
    processes = world.installation.standard()
    filler = os.urandom(LARGE // 2).hex()
    for n in range(WARM_UP // 100):
        world.ledger.publish_many([f"healthy.{n % HEALTHY}"] * 100, filler=filler)
    assert holds_within(lambda: world.statuses().get("pending", 0) == 0, 2 * PATIENCE), (
        "the warm-up does not end"
    )
    looks: list[dict[str, Look]] = []
    end = time.monotonic() + 60 * minutes
    with world.load(RATE, topics):
        while (now := time.monotonic()) < end:
            looks.append(look(processes))
            holds_within(lambda: time.monotonic() > now + PACE, 2 * PACE)
    part = len(looks) // 5
    assert part >= 5, f"{minutes:g} minutes are too few for a comparison"
    before, after = (
        {name: middle([one[name] for one in some]) for name in looks[0]}
        for some in (looks[part : 2 * part], looks[-part:])
    )
    failing.respond = flapping.respond = always(200)
    world.pause_all()
    world.wait_until_settled()
    found = check_invariants(world, replayed=False)
    lines = [line(name, before[name], after[name]) for name in before]
    trips = sum(word == "tripped" for word, _ in world.signals())
    section = [
        "## Soak",
        "",
        f"`make soak`: after {WARM_UP:,} events at once, {minutes:g} minutes of {RATE:.0f} events "
        f"a second for {HEALTHY} healthy, {FAILING} failing, {SILENT} silent "
        f"and {FLAPPING} flapping receivers; "
        f"{found.accepted:,} events, {found.requests:,} requests, {trips} trips. What each process "
        "and engine had open, as the median of the second fifth of the time and of the last, "
        f"on {report.machine()}.",
        "",
        *report.table(
            ("process", "memory, MiB", "threads", "open files", "connections to it"), lines
        ),
    ]
    print("\n".join(section))
    wrong = {name: grown(before[name], after[name]) for name in before}
    assert not any(wrong.values()), wrong
    if path := request.config.getoption("--report"):
        report.write(Path(path), "soak", "\n".join(section))
