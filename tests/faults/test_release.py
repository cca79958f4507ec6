"""Receivers that come back, and find five thousand or more deliveries that were held for them."""

from __future__ import annotations

import time

import pytest
from django.db import connection

from deliveries.holding import BATCH
from subscriptions import circuit
from subscriptions.conf import conf
from subscriptions.models import Subscription
from tests.faults.invariants import check_invariants
from tests.faults.load import percentile
from tests.faults.receivers import Request, always
from tests.faults.report import Row
from tests.faults.waiting import eventually, holds_within
from tests.faults.world import World

HELD = 5000
CAP = 10


def allowed(answered: int) -> int:
    """Requests in flight at once after so many were answered: 1, then 2, 4, 8, up to the cap."""
    window, needed = 1, 1
    while answered >= needed and window < CAP:
        window *= 2
        needed += window
    return min(window, CAP)


@pytest.mark.fault(
    f"a tripped receiver comes back with {HELD:,} held deliveries",
    f"released gently: 1, 2, 4, 8 in flight, never above its cap of {CAP}; all arrive, none twice",
)
def test_what_was_held_is_released_gently(world: World, measured: Row) -> None:
    world.configure(quick_retries="", slow_retries="3600", circuit_threshold=1, probe_first=3)
    site = world.receivers.site(always(500))
    world.subscribe(site, ["back"], name="back", max_in_flight=CAP)
    world.installation.standard()
    world.ledger.publish_many(["back"])
    row = Subscription.objects.get
    pk = world.lanes["back"].id
    eventually(lambda: row(pk=pk).state == "tripped", "the trip")
    world.ledger.publish_many(["back"] * (HELD - 1))
    assert world.statuses() == {"held": HELD}
    before = len(world.receivers.requests)
    site.respond = always(200, delay=0.01)
    eventually(lambda: row(pk=pk).state == "active", "the probe")
    seconds = world.wait_until_settled()
    check_invariants(world)
    assert world.statuses() == {"succeeded": HELD}
    released: list[Request] = [
        one for one in world.receivers.requests[before:] if one.status == 200
    ]
    assert len(released) == HELD
    # The probe is the first; the release begins after its answer.
    for answered_or_not, one in enumerate(released[1:]):
        assert one.beside <= allowed(answered_or_not - (one.beside - 1)), answered_or_not
    reached = next(n for n, one in enumerate(released) if one.beside == CAP)
    assert [word for word, _ in world.signals()] == ["tripped", "reset"]
    measured.add(
        most_in_flight=max(one.beside for one in released),
        cap_reached_after=f"{reached} deliveries",
        released_in=f"{seconds:.1f} s",
        sent_twice=len(released) - len({one.id for one in released}),
    )


BACKLOG = 100_000
OTHERS = 20
WOKEN_WITHIN = 2.0

_FILL_EVENTS = """
INSERT INTO deliveries_event (id, topic, type, body, created_at)
SELECT 'backlog-' || n, 'backlog', '', '{}', now() FROM generate_series(1, %(count)s) n
"""
_FILL_HELD = """
INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, attempt_count, retries_used, last_error, created_at, held_at
)
SELECT 'backlog-' || n, %(id)s, 'held', 0, 0, '', now(), now() FROM generate_series(1, %(count)s) n
"""


@pytest.mark.timeout(180)
@pytest.mark.fault(
    f"{BACKLOG:,} held deliveries of one receiver released by an operator, while others have "
    "events whose wake-ups are lost",
    f"the sweep wakes the others within {WOKEN_WITHIN:g} s and its interval; the release goes on "
    "in batches between",
)
def test_a_large_release_does_not_hold_up_the_sweep_for_others(
    world: World, measured: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = world.receivers.site(always(200, delay=0.02))
    world.subscribe(site, ["backlog"], name="backlog", max_in_flight=1)
    pk = world.lanes["backlog"].id
    others = [f"other.{n}" for n in range(OTHERS)]
    for name in others:
        world.subscribe(site, [name], name=name)
    circuit.pause([pk])
    with connection.cursor() as cursor:
        cursor.execute(_FILL_EVENTS, {"count": BACKLOG})
        cursor.execute(_FILL_HELD, {"count": BACKLOG, "id": pk})
    world.installation.standard()
    circuit.reset([pk])
    world.lanes["backlog"].bumped += 1
    # Their wake-ups are never sent, so only the sweep can find them.
    monkeypatch.setattr("deliveries.publishing.publish.wake", lambda *_, **__: None)
    left = []
    for name in others:
        left.append(world.statuses("backlog").get("held", 0))
        world.ledger.publish(name)
        seen = time.monotonic()
        holds_within(lambda seen=seen: time.monotonic() > seen + 0.2, 1)
    ids = {one.id for one in world.ledger.accepted}
    eventually(
        lambda: ids <= {one.id for one in world.receivers.requests}, "the others being woken"
    )
    waits = world.waits_after()
    seconds = eventually(
        lambda: world.statuses("backlog").get("held", 0) == 0, "the whole backlog being released"
    )
    assert max(waits) <= conf().sweep_interval + WOKEN_WITHIN
    assert left[0] >= BACKLOG - 20 * BATCH, "released in one piece"
    assert sum(held > 0 for held in left) >= OTHERS // 4, "released before the others were there"
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE deliveries_delivery SET status = 'discarded', next_attempt_at = NULL, "
            "last_error = 'given up by the test' "
            "WHERE subscription_id = %s AND status = 'pending' AND lease_until IS NULL",
            [pk],
        )
    world.wait_until_settled()
    found = check_invariants(world)
    assert (found.duplicates, found.unknown) == (0, 0)
    measured.add(
        others_woken_after=f"at most {max(waits):.1f} s",
        median=f"{percentile(waits, 0.5):.1f} s",
        held_meanwhile=f"{left[0]:,} to {left[-1]:,}",
        all_released_after=f"{seconds:.1f} s more",
        sent_twice=found.duplicates,
    )
