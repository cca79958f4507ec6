"""Large payloads for many slow receivers: what one process holds has a limit."""

from __future__ import annotations

import os

import pytest

from tests.faults.installation import open_things, peak_memory
from tests.faults.invariants import check_invariants
from tests.faults.receivers import always
from tests.faults.report import Row
from tests.faults.waiting import PATIENCE, eventually
from tests.faults.world import World
from webhooks_project.programs import RECOVER_QUEUES

LANES, EACH = 120, 9
SIZES = (64_000, 100_000, 200_000)
LIMIT = 16 * 2**20
SLOW = 1.0
# Beside the bodies that are counted: the rows as they come from the database, in hexadecimal, and
# what libcurl has for each request.
COPIES = 4


@pytest.mark.timeout(180)
@pytest.mark.fault(
    f"{LANES * EACH} payloads of {SIZES[0] // 1000} to {SIZES[-1] // 1000} kB for {LANES} "
    f"receivers that answer after {SLOW:g} s; `BODY_MEMORY` {LIMIT / 2**20:g} MiB",
    f"the worker grows by no more than {COPIES} times the limit; all arrive, none twice",
)
def test_large_payloads_for_slow_receivers_are_held_within_the_limit(
    world: World, measured: Row
) -> None:
    world.configure(body_memory=LIMIT, request_timeout=10)
    site = world.receivers.site()
    names = [f"large.{n}" for n in range(LANES)]
    for name in names:
        world.subscribe(site, [name], name=name)
    worker = world.installation.worker()
    world.installation.worker("recover", RECOVER_QUEUES)
    world.installation.beat()
    world.ledger.publish_many(names)
    assert world.receivers.wait_for(LANES, PATIENCE)
    world.wait_until_settled()
    before, _, _ = open_things(worker)

    site.respond = always(200, delay=SLOW)
    bodies = 0
    for n in range(EACH):
        size = SIZES[n % len(SIZES)]
        bodies += LANES * size
        world.ledger.publish_many(names, filler=os.urandom(size // 2).hex())
    seconds = eventually(
        lambda: world.statuses() == {"succeeded": LANES * (EACH + 1)}, "all arriving"
    )
    grown = peak_memory(worker) - before
    world.wait_until_settled()
    found = check_invariants(world)
    assert (found.undelivered, found.duplicates, found.unknown) == (0, 0, 0)
    assert 2 * bodies > 3 * COPIES * LIMIT, "there was nothing to hold back"
    assert grown <= COPIES * LIMIT
    measured.add(
        payloads=f"{bodies / 2**20:.0f} MiB",
        worker_before=f"{before / 2**20:.0f} MiB",
        grown_by=f"{grown / 2**20:.0f} MiB",
        limit=f"{LIMIT / 2**20:.0f} MiB",
        delivered_in=f"{seconds:.0f} s",
        sent_twice=found.duplicates,
    )
