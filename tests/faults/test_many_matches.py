"""One event for very many subscriptions, just loaded, before PostgreSQL has looked at them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection

from subscriptions.models import Subscription
from tests.faults.installation import open_things, peak_memory
from tests.faults.invariants import check_invariants
from tests.faults.load import percentile
from tests.faults.report import Row
from tests.faults.waiting import eventually, holds_within
from tests.faults.world import Lane, World

MATCHES = 100_000
OTHERS = 10
SOON = 2.0
# A request in flight takes some 30 KiB, and there are 3,000 places.
GROWTH = 160 * 2**20


@pytest.fixture
def without_statistics() -> Iterator[None]:
    """Nothing is analyzed or vacuumed meanwhile, as just after a load."""
    tables = ("subscriptions_subscription", "deliveries_delivery", "deliveries_lane")
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    yield
    with connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


def subscribe_many(world: World, url: str, topic: str) -> None:
    made = Subscription.objects.bulk_create(
        [
            Subscription(
                name=f"match-{n}", url=url, topic_patterns=[topic], headers={"X-Lane": f"match-{n}"}
            )
            for n in range(MATCHES)
        ],
        batch_size=5000,
    )
    for one in made:
        world.lanes[one.name] = Lane(one.pk, one.name, frozenset([topic]))


@pytest.mark.alone
@pytest.mark.fault(
    f"one event for {MATCHES:,} subscriptions without statistics, and others after it",
    f"none is sent twice; half of the others arrive within {SOON:g} s, all within {3 * SOON:g}; "
    f"a worker grows by no more than {GROWTH >> 20} MiB",
)
def test_an_event_for_very_many_delays_nobody_and_is_sent_once(
    world: World, measured: Row, without_statistics: None
) -> None:
    # As it is by default: this is about the sender, not about a receiver that is late.
    world.configure(request_timeout=10)
    site = world.receivers.site()
    others = [f"else-{n}" for n in range(OTHERS)]
    for name in others:
        world.subscribe(site, [name], name=name)
    subscribe_many(world, site.url, "all")
    workers = world.installation.standard()[:2]
    before = max(open_things(one)[0] for one in workers)
    world.ledger.publish("all")
    for name in others:
        world.ledger.publish(name)
        holds_within(lambda: False, 0.1)  # spread over the time that the many take
    everything = MATCHES + OTHERS
    seconds = eventually(lambda: len(world.receivers.requests) >= everything, "arrivals", 120)
    world.wait_until_settled()
    grown = max(map(peak_memory, workers)) - before
    found = check_invariants(world)
    published = {one.id: one.returned for one in world.ledger.accepted if one.topic in others}
    waits = [one.at - published[one.id] for one in world.receivers.requests if one.lane in others]
    assert found.duplicates == 0
    measured.add(
        others_p50=f"{1000 * percentile(waits, 0.5):.0f} ms",
        others_longest=f"{1000 * max(waits):.0f} ms",
        all_arrived_after=f"{seconds:.1f} s",
        a_worker_grew_by=f"{grown / 2**20:.0f} MiB",
        sent_twice=found.duplicates,
    )
    # On two cores the publishers, the receiver and PostgreSQL share them with the crowd.
    assert percentile(waits, 0.5) <= SOON
    assert max(waits) <= 3 * SOON
    assert grown <= GROWTH
