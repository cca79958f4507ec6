"""A transport with few places, and many more requests for receivers that never answer."""

from __future__ import annotations

import sys
import time

import pytest
from django.db import connection

from deliveries.sending.sender import SETTLE_TIME
from subscriptions.conf import conf
from subscriptions.models import Subscription
from tests.faults.invariants import check_invariants
from tests.faults.receivers import never
from tests.faults.report import Row
from tests.faults.waiting import eventually
from tests.faults.world import World
from webhooks_project.programs import DELIVER_QUEUES, RECOVER_QUEUES
from webhooks_project.receiver import Answer

# The transport takes half of the files that a process may have open.
FILES, SOME_FILES = 80, 320
LANES, EACH = 40, 10
SLACK = 2.0
DEADLINE = 10.0


def with_files(count: int) -> list[str]:
    """A program that is started with this may have so many files open."""
    code = (
        "import os, resource, sys;"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count}));"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", code]


def spent() -> tuple[int, int]:
    """The retries that deliveries say they have used, and the timeouts that are recorded."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT sum(retries_used) FROM deliveries_delivery), "
            "(SELECT count(*) FROM deliveries_attempt WHERE outcome = 'timeout')"
        )
        row = cursor.fetchone()
    return (row[0], row[1])


@pytest.mark.timeout(180)
@pytest.mark.fault(
    f"room for {FILES // 2} requests, and {LANES * EACH} for {LANES} receivers that never answer; "
    "then each gets another URL that answers",
    "no request begins that could end after its lease: nothing is sent twice, each timeout uses "
    "up a retry; what waited is given back, and goes to the new URL with a new timestamp",
)
def test_requests_that_find_no_place_are_given_back_and_sent_anew(
    world: World, measured: Row
) -> None:
    world.configure(circuit_threshold=1000)
    hung = world.receivers.site(never)
    names = [f"hung.{n}" for n in range(LANES)]
    for name in names:
        world.subscribe(hung, [name], name=name)
    wrap = with_files(FILES)
    world.installation.worker("deliver1", DELIVER_QUEUES, wrap=wrap)
    world.installation.worker("recover", RECOVER_QUEUES, wrap=wrap)
    world.installation.beat()
    world.ledger.publish_many(names * EACH)
    eventually(lambda: spent()[1] >= FILES // 4, "timeouts")

    answering = world.receivers.site()
    before = len(world.receivers.requests)
    moved: dict[str, float] = {}
    for name in names:
        subscription = Subscription.objects.get(pk=world.lanes[name].id)
        subscription.url = answering.url
        subscription.save()
        world.lanes[name].bumped += 1
        moved[name] = time.monotonic()
    eventually(lambda: world.statuses() == {"succeeded": LANES * EACH}, "all arriving")
    world.wait_until_settled()
    found = check_invariants(world, replayed=False)
    retries, timeouts = spent()
    # Of one claim, requests may begin until its lease could not cover another.
    may_wait = conf().lease - conf().request_timeout - SETTLE_TIME
    arrived = world.receivers.requests[before:]
    stale = [one.at - moved[one.lane] for one in arrived if one.status == 0]
    ages = [one.age for one in arrived if one.status == 200]
    assert found.unknown == 0
    # Each request that came more than once came after a timeout that was recorded.
    assert found.duplicates <= timeouts
    assert found.requests <= timeouts + LANES * EACH
    assert retries == timeouts
    assert max(stale, default=0) <= may_wait + SLACK
    assert max(ages) <= may_wait + SLACK
    measured.add(
        requests=found.requests,
        timeouts=timeouts,
        retries_used=retries,
        unknown_outcomes=found.unknown,
        last_to_the_old_URL=f"{max(stale, default=0):.1f} s after the change",
        oldest_timestamp=f"{max(ages):.1f} s",
    )


@pytest.mark.fault(
    f"{LANES} receivers that answered so far become silent at the same time, with "
    f"{LANES * EACH} requests for them, and {SOME_FILES // 2} places",
    f"a healthy one is delivered to within {SLACK:g} s, not after their {DEADLINE:g} s",
)
def test_receivers_that_become_silent_together_leave_places_for_the_others(
    world: World, measured: Row
) -> None:
    world.configure(request_timeout=DEADLINE)
    site = world.receivers.site()
    names = [f"silent.{n}" for n in range(LANES)]
    for name in names:
        world.subscribe(site, [name], name=name)
    world.subscribe(world.receivers.site(), ["healthy"], name="healthy")
    world.installation.worker("deliver1", DELIVER_QUEUES, wrap=with_files(SOME_FILES))
    world.installation.worker("recover", RECOVER_QUEUES)
    world.ledger.publish_many(names)
    world.wait_until_settled()
    site.respond = never
    world.ledger.publish_many(names * EACH)
    eventually(lambda: len(+site.in_flight) == LANES, "a request for each of them", DEADLINE / 2)
    in_flight = site.in_flight.total()
    world.ledger.publish("healthy")
    seconds = eventually(
        lambda: world.receivers.requests[-1].lane == "healthy", "the healthy one's request"
    )
    assert seconds <= SLACK
    site.respond = lambda _: Answer()
    site.let_go(len(site.waiting), 200)
    world.wait_until_settled()
    found = check_invariants(world)
    assert (found.undelivered, found.duplicates, found.unknown) == (0, 0, 0)
    measured.add(silent_requests_in_flight=in_flight, healthy_after=f"{seconds:.2f} s")
