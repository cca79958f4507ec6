"""The broker, which also holds the due set and its bell: killed, emptied, away."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis
from django.conf import settings

from deliveries.waking.queues import DELIVER
from deliveries.waking.wakeups import BELL_SECONDS
from subscriptions.conf import conf
from tests.faults.invariants import Summary, check_invariants
from tests.faults.load import percentile
from tests.faults.report import Row
from tests.faults.waiting import PATIENCE, eventually, holds_within
from tests.faults.world import World

LANES = 30
RATE = 40.0
OUTAGE = 30.0
# What a broker that is away may cost the caller of `publish`, in seconds.
MOST = 1.0
SLACK = 5.0
# The longest pause of Celery's consumers between two tries to connect; it grows from 2 s.
RECONNECT = 30.0


@pytest.fixture
def topics(world: World) -> list[str]:
    """Thirty healthy lanes, with everything that sends."""
    # Workers are frozen for seconds: a request in flight must outlast that.
    world.configure(request_timeout=10)
    site = world.receivers.site()
    topics = [f"broker.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    return topics


def work_a_while(world: World) -> None:
    seen = len(world.receivers.requests)
    assert world.receivers.wait_for(seen + 2 * LANES, PATIENCE), "nothing is delivered any more"


def published(world: World, seconds: float, topics: list[str]) -> None:
    with world.load(RATE, topics):
        holds_within(lambda: False, seconds)


def all_arrived(world: World) -> Summary:
    assert world.ledger.refused == [], world.ledger.refused[0].error
    assert max(one.took for one in world.ledger.accepted) < MOST
    found = check_invariants(world)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert (found.undelivered, found.unknown, found.duplicates) == (0, 0, 0)
    return found


@pytest.mark.fault(
    "broker killed (SIGKILL) and started again, three times under load",
    "`publish` succeeds, each call under a second; everything arrives, nothing twice",
)
def test_a_killed_broker_loses_nothing(world: World, topics: list[str], measured: Row) -> None:
    with world.load(RATE, topics):
        for _ in range(3):
            work_a_while(world)
            world.valkey.restart(signal.SIGKILL)
    seconds = world.wait_until_settled()
    found = all_arrived(world)
    assert seconds <= BELL_SECONDS + conf().sweep_interval + SLACK
    measured.add(
        events=found.accepted,
        slowest_publish=f"{1000 * max(one.took for one in world.ledger.accepted):.0f} ms",
        sent_twice=found.duplicates,
        all_settled_after=f"{seconds:.1f} s",
    )


@pytest.mark.fault(
    "an event published just after the one before it was taken, ten times, no sweep",
    "each is taken at once: it waits for no bell (2 s) to run out",
)
def test_the_second_event_waits_for_no_bell(world: World, measured: Row) -> None:
    world.configure(sweep_interval=600)
    world.subscribe(world.receivers.site(), ["again"])
    world.installation.workers()
    for n in range(10):
        world.ledger.publish("again")
        assert world.receivers.wait_for(n + 1, BELL_SECONDS / 2), "an event waits for the bell"
    world.wait_until_settled()
    found = all_arrived(world)
    measured.add(events=found.accepted, slowest_delivery=f"{max(world.waits_after()):.2f} s")


@contextmanager
def nobody_takes_wake_ups(world: World, gathered: Callable[[], bool]) -> Iterator[None]:
    """Workers that are there and do nothing, until wake-ups have gathered."""
    with ExitStack() as frozen:
        for name in ("deliver1", "deliver2", "recover"):
            frozen.enter_context(world.installation.named(name).frozen())
        eventually(gathered, "wake-ups gathering")
        yield


@pytest.mark.parametrize(
    ("lost", "bound"),
    [
        pytest.param(
            "all",
            0.0,
            marks=pytest.mark.fault(
                "FLUSHALL three times under load: waiting messages, the due set and its bell",
                "everything arrives, nothing twice, after the next sweep",
            ),
        ),
        pytest.param(
            "messages",
            BELL_SECONDS,
            marks=pytest.mark.fault(
                "the broker loses its messages three times under load, and keeps the bell",
                "the same, after what the bell lasts (2 s) and a sweep",
            ),
        ),
    ],
)
def test_lost_wake_ups_cost_time_and_nothing_else(
    world: World, topics: list[str], measured: Row, lost: str, bound: float
) -> None:
    bound += conf().sweep_interval
    wake_ups, losses = 0, []
    with (
        redis.Redis.from_url(settings.REDIS_URL) as due,
        redis.Redis.from_url(
            settings.CELERY_BROKER_URL.replace("redis+socket", "unix").replace("virtual_host", "db")
        ) as broker,
        world.load(RATE, topics),
    ):

        def waiting() -> int:
            ids = due.zcard(f"webhooks:{{{DELIVER}}}:due") if lost == "all" else 0
            return int(ids) + int(broker.llen(DELIVER))

        for _ in range(3):
            work_a_while(world)
            with nobody_takes_wake_ups(world, lambda: waiting() > (LANES // 2) * (lost == "all")):
                wake_ups += waiting()
                if lost == "all":
                    broker.flushall()
                else:
                    broker.flushdb()
                losses.append(time.monotonic())
    world.wait_until_settled()
    found = all_arrived(world)
    waits = world.waits_after(losses)
    assert max(waits) <= bound + SLACK
    measured.add(
        events=found.accepted,
        wake_ups_lost=wake_ups,
        sent_twice=found.duplicates,
        slowest_delivery=f"{max(waits):.1f} s",
        bound=f"{bound:g} s",
    )


@pytest.mark.fault(
    f"broker down for {OUTAGE:.0f} s while events are published",
    "`publish` succeeds, each call under a second; everything arrives once it is back",
)
def test_events_published_without_a_broker_arrive_later(
    world: World, topics: list[str], measured: Row
) -> None:
    with world.valkey.down(signal.SIGKILL):
        before = len(world.ledger.accepted)
        published(world, OUTAGE, topics)
        during = world.ledger.accepted[before:]
    back = time.monotonic()
    assert len(during) > 0.9 * RATE * OUTAGE, "publishing became slow"
    eventually(lambda: len(world.receivers.requests) > 0, "the first delivery afterwards")
    first = time.monotonic() - back
    assert first <= RECONNECT + SLACK
    seconds = world.wait_until_settled()
    found = all_arrived(world)
    measured.add(
        events=found.accepted,
        slowest_publish=f"{1000 * max(one.took for one in during):.0f} ms",
        its_median=f"{1000 * percentile([one.took for one in during], 0.5):.1f} ms",
        sent_twice=found.duplicates,
        first_delivery_after=f"{first:.1f} s",
        all_settled_after=f"{first + seconds:.1f} s",
    )
