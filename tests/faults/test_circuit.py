"""The circuit under fire: flapping receivers, fifty results at once, everybody at it at once."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from uuid import UUID

import pytest
from django.db import DatabaseError, connection, transaction

from subscriptions import circuit
from subscriptions.models import Subscription
from tests.faults.invariants import check_invariants
from tests.faults.receivers import Site, always, in_turn, never
from tests.faults.report import Row
from tests.faults.waiting import PATIENCE, eventually
from tests.faults.world import Lane, World
from webhooks_project.receiver import Answer

# Every failed attempt counts, and is made again at once.
NO_QUICK = {"quick_retries": "", "slow_retries": ",".join(["0.05"] * 40), "probe_first": 3600}
AT_ONCE = 50
RACERS, RACES, RACED = 8, 1000, 4
TRIPS = 12  # so many in a race at least: it goes on until there were


def row(world: World, name: str) -> Subscription:
    return Subscription.objects.get(pk=world.lanes[name].id)


@pytest.mark.fault("receiver flapping: four failures, one success, again and again", "never trips")
def test_four_failures_and_a_success_never_trip(world: World, measured: Row) -> None:
    world.configure(**NO_QUICK)
    site = world.receivers.site(in_turn([500] * 4 + [200]))
    world.subscribe(site, ["flap"], name="flapping")
    world.installation.standard()
    world.ledger.publish_many(["flap"] * 4)
    world.wait_until_settled()
    found = check_invariants(world)
    assert world.statuses() == {"succeeded": 4}
    assert len(world.receivers.requests) == 20
    assert world.signals() == []
    assert row(world, "flapping").consecutive_failures == 0
    measured.add(requests=found.requests, failures=16, trips=0)


@pytest.mark.fault(
    "receiver that fails five times in a row", "trips once, with one signal, and is left alone"
)
def test_five_failures_trip_once_with_one_signal(world: World, measured: Row) -> None:
    world.configure(**NO_QUICK)
    site = world.receivers.site(always(500))
    world.subscribe(site, ["dead"], name="dead")
    world.installation.standard()
    world.ledger.publish_many(["dead"] * 20)
    eventually(lambda: row(world, "dead").state == "tripped", "the trip")
    world.wait_until_settled()
    found = check_invariants(world)
    # The first claim has ten in flight; all that were under way at the trip are known by then.
    assert 5 <= len(world.receivers.requests) <= 14
    assert world.signals() == [("tripped", world.lanes["dead"].id)]
    assert world.statuses() == {"held": 20}
    measured.add(requests=found.requests, trips=1, signals=len(world.signals()), held=20)


@pytest.mark.fault(
    "50 failures of one subscription at the same moment; then 50 more that come after a reset",
    "counted exactly; the late ones change nothing",
)
def test_fifty_failures_at_once_are_counted_and_fifty_late_ones_are_not(
    world: World, measured: Row
) -> None:
    world.configure(
        quick_retries="", slow_retries="3600", circuit_threshold=AT_ONCE, request_timeout=10
    )
    site = world.receivers.site(never)
    world.subscribe(site, ["crowd"], name="crowd", max_in_flight=2 * AT_ONCE, recovery="manual")
    world.installation.standard()
    world.ledger.publish_many(["crowd"] * 2 * AT_ONCE)
    eventually(lambda: site.in_flight["crowd"] == 2 * AT_ONCE, "a hundred requests in flight")
    site.let_go(AT_ONCE, 500)
    eventually(lambda: row(world, "crowd").state == "tripped", "the trip")
    assert row(world, "crowd").consecutive_failures == AT_ONCE

    circuit.reset([world.lanes["crowd"].id])
    after_reset = row(world, "crowd")
    assert (after_reset.state, after_reset.consecutive_failures) == ("active", 0)
    site.respond = always(200)
    site.let_go(AT_ONCE, 500)
    eventually(lambda: world.attempts() >= 2 * AT_ONCE, "the late results")
    world.wait_until_settled()
    found = check_invariants(world, replayed=False)
    now = row(world, "crowd")
    assert (now.state, now.consecutive_failures, now.last_error) == ("active", 0, "")
    assert now.last_failure_at == after_reset.last_failure_at
    assert now.circuit_epoch == after_reset.circuit_epoch
    assert sorted(word for word, _ in world.signals()) == ["reset", "tripped"]
    # What was held at the trip went out again; what came late waits for its retry.
    assert world.statuses() == {"succeeded": AT_ONCE, "pending": AT_ONCE}
    measured.add(counted=AT_ONCE, trips=1, late=AT_ONCE, failures_after_them=0)
    assert found.unknown == 0


@pytest.mark.fault(
    "a reset that commits while the transaction of a `publish` is still open",
    "the event is delivered, not left behind as held",
)
def test_an_event_published_while_its_circuit_is_reset_is_delivered(
    world: World, measured: Row
) -> None:
    world.configure(**NO_QUICK)
    site = world.receivers.site(always(500))
    world.subscribe(site, ["reset"], name="reset", recovery="manual")
    world.installation.standard()
    world.ledger.publish_many(["reset"])
    eventually(lambda: row(world, "reset").state == "tripped", "the trip")
    site.respond = always(200)
    with transaction.atomic():
        world.ledger.publish("reset")
        reset = threading.Thread(target=reset_and_close, args=[world.lanes["reset"].id])
        reset.start()
        # It may have to wait for this transaction, if publishing locks what it reads.
        reset.join(1)
    reset.join(PATIENCE)
    seconds = eventually(lambda: world.statuses() == {"succeeded": 2}, "both being delivered", 10)
    check_invariants(world)
    measured.add(both_delivered_after=f"{seconds:.1f} s")


def reset_and_close(subscription_id: UUID) -> None:
    circuit.reset([subscription_id])
    connection.close()


class Racers:
    """Operators who all change the same subscriptions at once, while these fail and trip."""

    def __init__(self, world: World, sites: list[Site]) -> None:
        self.world = world
        self.sites = sites
        self.done: Counter[str] = Counter()
        self.unexpected: list[Exception] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._names = [self.subscribe() for _ in range(RACED)]

    def subscribe(self) -> str:
        name = f"raced-{next(self._numbers)}"
        self.world.subscribe(self.sites[0], ["race"], name=name, recovery="manual")
        return name

    def race(self, seed: int) -> None:
        chance = random.Random(seed)
        steps = [self.edit, self.re_point, self.pause, self.reset, self.reset, self.publish]
        end = time.monotonic() + PATIENCE
        try:
            for n in itertools.count():
                if n >= RACES // RACERS and (self.trips() >= TRIPS or time.monotonic() > end):
                    break
                step = self.replace if n % 25 == 24 else chance.choice(steps)
                try:
                    step(chance)
                except Exception as error:
                    self.unexpected.append(error)
                    connection.close()
                with self._lock:
                    self.done[step.__name__] += 1
        finally:
            connection.close()

    def trips(self) -> int:
        return sum(word == "tripped" for word, _ in self.world.signals())

    def _pick(self, chance: random.Random) -> Lane:
        with self._lock:
            return self.world.lanes[chance.choice(self._names)]

    def edit(self, chance: random.Random) -> None:
        self._save(self._pick(chance), max_in_flight=chance.randint(1, 20))

    def re_point(self, chance: random.Random) -> None:
        lane = self._pick(chance)
        # A path of its own each time: the same URL again would be no change.
        url = f"{chance.choice(self.sites).url}{next(self._numbers)}"
        if self._save(lane, url=url):
            self._bump(lane)

    def pause(self, chance: random.Random) -> None:
        circuit.pause([self._pick(chance).id])

    def reset(self, chance: random.Random) -> None:
        lane = self._pick(chance)
        if circuit.reset([lane.id], discard_held=chance.random() < 0.2):
            self._bump(lane)

    def publish(self, chance: random.Random) -> None:
        if self.world.ledger.publish("race") is None:
            raise self.world.ledger.refused[-1].error

    def replace(self, chance: random.Random) -> None:
        """Delete a subscription, and make another."""
        new = self.subscribe()
        with self._lock:
            old = self._names.pop(chance.randrange(len(self._names)))
            self._names.append(new)
        Subscription.objects.get(pk=self.world.lanes[old].id).delete()

    def _save(self, lane: Lane, **changes: object) -> bool:
        subscription = Subscription.objects.filter(pk=lane.id).first()
        if subscription is None:
            return False
        for name, value in changes.items():
            setattr(subscription, name, value)
        try:
            subscription.save()
        except DatabaseError:
            if Subscription.objects.filter(pk=lane.id).exists():
                raise
            return False  # deleted between the two
        return True

    def _bump(self, lane: Lane) -> None:
        with self._lock:
            lane.bumped += 1


def deadlocks() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(cursor.fetchone()[0])


@pytest.mark.fault(
    f"trip, edit, pause, delete, reset and publish racing {RACES} times or more, {RACERS} threads",
    "always one of three states, no deadlock, every trip has its signal",
)
def test_everything_at_once_leaves_every_circuit_in_one_of_three_states(
    world: World, measured: Row
) -> None:
    world.configure(circuit_threshold=1, quick_retries="", slow_retries="0.05,0.05,0.05,0.05")
    chance = random.Random(7)
    sites = [
        world.receivers.site(lambda _: Answer(chance.choice((200, 500, 500)))) for _ in range(2)
    ]
    racers = Racers(world, sites)
    world.installation.standard()
    before = deadlocks()
    threads = [threading.Thread(target=racers.race, args=[seed]) for seed in range(RACERS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(2 * PATIENCE)
        assert not one.is_alive(), "a thread hangs"
    assert racers.unexpected == []
    for site in sites:
        site.respond = always(200)
    world.wait_until_settled()
    existing = list(Subscription.objects.all())
    assert {one.state for one in existing} <= {"active", "paused", "tripped"}
    # A reset by hand is in the count of epochs once, by its signal if it ended a trip.
    signals = Counter(world.signals())
    for one in existing:
        world.lanes[one.name].bumped -= signals["reset", one.pk]
    found = check_invariants(world, replayed=False, may_miss=frozenset(world.lanes))
    circuit.reset([one.pk for one in existing])
    world.wait_until_settled()
    assert world.statuses().keys() <= {"succeeded", "failed", "discarded"}
    assert deadlocks() == before
    trips = racers.trips()
    assert trips >= TRIPS, "too few trips for a race"
    measured.add(**racers.done, trips=trips, deadlocks=0, requests=found.requests)
