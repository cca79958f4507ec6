"""The database: restarted, its connections cut, read-only for a while."""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import psycopg
import pytest
from django.db import connection, transaction

from tests.faults.invariants import Summary, check_invariants
from tests.faults.receivers import always
from tests.faults.report import Row
from tests.faults.test_workers import slowly
from tests.faults.waiting import PATIENCE, eventually, holds_within
from tests.faults.world import World
from webhooks_project.engines import DATABASE

LANES = 30
RATE = 40.0
READ_ONLY = 8.0


@pytest.fixture
def topics(world: World) -> list[str]:
    site = world.receivers.site(slowly)
    topics = [f"database.{n}" for n in range(LANES)]
    for topic in topics:
        world.subscribe(site, [topic])
    world.installation.standard()
    return topics


def cut_connections(opened: psycopg.Connection) -> int:
    """Terminate every connection to the project's database; returns how many there were."""
    return opened.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
        [DATABASE],
    ).fetchone()[0]


def nothing_was_blamed(world: World, *, crashed: bool = False) -> Summary:
    """All that was acknowledged arrived, and no circuit noticed anything."""
    found = check_invariants(world, claims_lost=crashed)
    assert world.wanted() <= set(world.receivers.arrivals()), "something never arrived"
    assert found.undelivered == 0
    assert world.signals() == []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM subscriptions_subscription "
            "WHERE consecutive_failures > 0 OR NOT enabled OR last_error <> ''"
        )
        assert cursor.fetchone()[0] == 0
    return found


def work_a_while(world: World) -> None:
    seen = len(world.receivers.requests)
    assert world.receivers.wait_for(seen + 2 * LANES, PATIENCE), "nothing is delivered any more"


def first_arrival_after(world: World, moment: float) -> float:
    """Seconds from `moment` until an event that was published later arrives."""
    later = {one.id for one in world.ledger.accepted if one.began > moment}
    arrived = [one.at for one in world.receivers.requests if one.id in later]
    return min(arrived) - moment if arrived else float("inf")


def go_on(world: World, moment: float) -> float:
    """Wait for an event that was published after `moment`; the seconds that took."""
    eventually(lambda: first_arrival_after(world, moment) < float("inf"), "deliveries going on")
    return first_arrival_after(world, moment)


def report(measured: Row, world: World, found: Summary, gaps: list[float], settled: float) -> None:
    measured.add(
        events=found.accepted,
        refused=len(world.ledger.refused),
        slowest_refusal=f"{max((one.took for one in world.ledger.refused), default=0):.2f} s",
        unknown_outcomes=found.unknown,
        sent_twice=found.duplicates,
        deliveries_go_on_after=f"{max(gaps):.1f} s",
        all_settled_after=f"{settled:.1f} s",
    )


@pytest.mark.fault(
    "PostgreSQL restarted under load: fast, immediate (as after a crash), and a kill -9 of a "
    "backend, which takes all others with it",
    "nothing acknowledged that was not committed; no circuit moves; workers recover by themselves; "
    "sent twice is at most what was in flight at a crash",
)
def test_a_restarted_database_loses_nothing(world: World, topics: list[str], measured: Row) -> None:
    gaps = []
    with world.load(RATE, topics):
        for break_it in (
            lambda: world.postgresql.restart(signal.SIGINT),
            lambda: world.postgresql.restart(signal.SIGQUIT),
            world.postgresql.kill_a_child,
        ):
            work_a_while(world)
            broken = time.monotonic()
            break_it()
            gaps.append(go_on(world, broken))
    settled = world.wait_until_settled()
    found = nothing_was_blamed(world, crashed=True)
    # One request in flight for each lane, at each of the two crashes and at the restart.
    assert found.duplicates <= 3 * LANES
    report(measured, world, found, gaps, settled)


@pytest.mark.fault(
    "all connections to PostgreSQL terminated, ten times under load",
    "the same",
)
def test_cut_connections_lose_nothing(world: World, topics: list[str], measured: Row) -> None:
    gaps, cut = [], 0
    with world.load(RATE, topics), world.postgresql.operator() as opened:
        for _ in range(10):
            work_a_while(world)
            broken = time.monotonic()
            cut += cut_connections(opened)
            gaps.append(go_on(world, broken))
    settled = world.wait_until_settled()
    found = nothing_was_blamed(world)
    assert cut >= 10, "there was nothing to cut"
    report(measured, world, found, gaps, settled)


@pytest.mark.fault(
    f"PostgreSQL read-only for {READ_ONLY:.0f} s under load",
    "`publish` says so; nothing acknowledged is lost; no circuit moves; it goes on by itself",
)
def test_a_read_only_database_stops_everything_and_loses_nothing(
    world: World, topics: list[str], measured: Row
) -> None:
    with world.load(RATE, topics):
        work_a_while(world)
        with world.postgresql.operator() as opened:
            opened.execute(f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on")
            try:
                cut_connections(opened)
                before = len(world.ledger.refused)
                holds_within(lambda: False, READ_ONLY)
                refused = len(world.ledger.refused) - before
            finally:
                opened.execute(f"ALTER DATABASE {DATABASE} RESET default_transaction_read_only")
                cut_connections(opened)
        gap = go_on(world, time.monotonic())
    settled = world.wait_until_settled()
    found = nothing_was_blamed(world)
    assert refused > 0.5 * RATE * READ_ONLY, "publish did not say that nothing can be written"
    report(measured, world, found, [gap], settled)


@pytest.mark.fault(
    "a delivery's row locked by an operator's open transaction, among others of the same lane",
    "the others of the lane do not wait for it; it arrives once it is let go",
)
def test_a_locked_delivery_holds_up_no_other(world: World, measured: Row) -> None:
    site = world.receivers.site()
    world.subscribe(site, ["locked"], name="locked")
    events = 20
    world.ledger.publish_many(["locked"] * events)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT event_id FROM deliveries_delivery ORDER BY id LIMIT 1 FOR UPDATE"
            )
            locked = cursor.fetchone()[0]
        world.installation.standard()
        ready = time.monotonic()
        assert world.receivers.wait_for(events - 1, 10), "the others wait for the locked one"
        seconds = time.monotonic() - ready
        assert locked not in {one.id for one in world.receivers.requests}
    world.wait_until_settled()
    found = check_invariants(world)
    assert world.statuses() == {"succeeded": events}
    assert (found.duplicates, found.unknown) == (0, 0)
    measured.add(others=events - 1, arrived_after=f"{seconds:.1f} s", sent_twice=found.duplicates)


ROUND, PHASE = 10, 8.0
SLOWER = 1.3


class Rounds:
    """An event for each of some lanes, and the next ones as soon as all have arrived."""

    def __init__(self, world: World) -> None:
        self._world = world
        site = world.receivers.site()
        self._topics = [f"round.{n}" for n in range(ROUND)]
        for topic in self._topics:
            world.subscribe(site, [topic], name=topic)

    def go_on(self, seconds: float) -> list[float]:
        """The seconds of each round."""
        found = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began, seen = time.monotonic(), len(self._world.receivers.requests)
            accepted = len(self._world.ledger.accepted)
            self._world.ledger.publish_many(self._topics)
            ids = {one.id for one in self._world.ledger.accepted[accepted:]}
            assert self._world.receivers.wait_until(partial(self._all_came, ids, seen), PATIENCE), (
                "a round does not end"
            )
            found.append(time.monotonic() - began)
        return found

    def _all_came(self, ids: set[str], since: int) -> bool:
        return ids <= {one.id for one in self._world.receivers.requests[since:]}


@contextmanager
def locking(world: World, names: list[str]) -> Iterator[None]:
    """An operator's open transaction in which the rows of these subscriptions are locked."""
    with world.postgresql.operator(DATABASE) as opened:
        opened.execute("BEGIN")
        rows = (
            "SELECT id, consecutive_failures, last_success_at FROM subscriptions_subscription "
            "WHERE name = ANY(%s) ORDER BY id"
        )
        before = opened.execute(f"{rows} FOR NO KEY UPDATE", [names]).fetchall()
        yield
        # Results are written in the end, for their leases are shorter than a lock may be.
        assert opened.execute(rows, [names]).fetchall() == before, "the rows were not locked"
        opened.execute("ROLLBACK")


@pytest.mark.alone
@pytest.mark.fault(
    "the rows of two subscriptions, one failing and one answering, locked by an operator's open "
    "transaction while their results come in",
    f"rounds of {ROUND} others take at most {SLOWER} times as long as beside a transaction that "
    "locks nothing of theirs; both go on once it is over",
)
def test_a_locked_subscription_slows_no_other_down(world: World, measured: Row) -> None:
    world.configure(circuit_threshold=1000)
    rounds = Rounds(world)
    world.subscribe(world.receivers.site(always(500)), ["fails"], name="fails")
    world.subscribe(world.receivers.site(), ["answers"], name="answers")
    world.subscribe(world.receivers.site(), ["quiet"], name="quiet")
    locked = ["fails", "answers"]
    world.installation.standard()
    rounds.go_on(2)
    without: list[float] = []
    among: list[float] = []
    for _ in range(2):
        # A transaction that stays open keeps PostgreSQL from removing the old versions of any row,
        # which slows all that are updated: so there is one in both, and what differs is the locks.
        with locking(world, ["quiet"]):
            without += rounds.go_on(PHASE / 2)
        with locking(world, locked):
            before = len(world.receivers.requests)
            world.ledger.publish_many(locked * 10)
            assert world.receivers.wait_until(
                lambda since=before: (
                    {one.lane for one in world.receivers.requests[since:]} >= set(locked)
                ),
                PATIENCE,
            ), "nothing is sent for the locked ones"
            among += rounds.go_on(PHASE / 2)
    world.pause_all()
    world.wait_until_settled()
    found = check_invariants(world, replayed=False)
    assert found.unknown == 0
    # Not the median: some of the rounds take ten times as long as the others, and count as well.
    quiet, loud = statistics.mean(without), statistics.mean(among)
    measured.add(
        rounds_without=f"{len(without)} in {PHASE:g} s",
        rounds_with=f"{len(among)} in {PHASE:g} s",
        mean=f"{1000 * quiet:.0f} and {1000 * loud:.0f} ms",
        ratio=f"{loud / quiet:.2f}",
        longest=f"{1000 * max(without):.0f} and {1000 * max(among):.0f} ms",
    )
    assert loud <= SLOWER * quiet
    assert len(among) * SLOWER >= len(without)
