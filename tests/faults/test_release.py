"""A receiver that comes back, and finds five thousand deliveries that were held for it."""

from __future__ import annotations

import pytest

from subscriptions.models import Subscription
from tests.faults.invariants import check_invariants
from tests.faults.receivers import Request, always
from tests.faults.report import Row
from tests.faults.waiting import eventually
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
