"""The scenarios: each makes an installation, puts a load on it, and says what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from children import Child
from measuring import percentile
from place import Place, Receiver
from trial import Ledger, Measured, Trial, arrivals_of, latencies, load, trial

OURS = "this project"
SHARED = {"topic": "order.created", "pattern": "order.*"}
OWN = {"topic": "customer.{n}.order.created", "pattern": "customer.{n}.>"}


@dataclass(frozen=True)
class Sizes:
    """How much of each scenario is run."""

    backlog: int
    wide_events: int
    live_events: int
    narrow_events: int
    narrow_many_events: int
    paced_seconds: float
    rounds: int
    """How often a comparison of with and without changes over."""
    scale_seconds: float


FULL = Sizes(
    backlog=100_000,
    wide_events=10,
    live_events=1000,
    narrow_events=4000,
    narrow_many_events=20_000,
    paced_seconds=20.0,
    rounds=3,
    scale_seconds=8.0,
)
QUICK = Sizes(
    backlog=20_000,
    wide_events=2,
    live_events=200,
    narrow_events=600,
    narrow_many_events=4000,
    paced_seconds=4.0,
    rounds=1,
    scale_seconds=3.0,
)

WIDE = 5000
NARROW = 20_000
RATE = 50.0


def backlog(
    place: Place, deliveries: int, subscriptions: int = 20, after: Callable[[], None] | None = None
) -> Measured:
    """Everything is published before a worker runs; then the worker drains it.

    `after` is called while the database is still there.
    """
    with trial(place) as bench:
        receiver, publisher, ledger = _shared(bench, subscriptions)
        said = publisher.ask(
            do="publish",
            **_to_all(ledger, subscriptions, deliveries // subscriptions),
            batch=100,
        )
        place.checkpoint()
        busy = load()
        before = bench.cpu()
        bench.start_workers()
        bench.wait_for_arrivals(receiver, 1)
        # What the workers spent on starting is not part of it.
        started = bench.cpu() | {name: spent for name, spent in before.items() if name in _STEADY}
        bench.wait_for_arrivals(receiver, deliveries)
        recorded = bench.wait_until_recorded()
        measured = Measured.of(
            "backlog",
            OURS,
            arrivals_of(receiver, ledger),
            began=None,
            recorded=recorded,
            cpu=bench.cpu_since(started),
            load_before=busy,
            figures={"publish_seconds": said["ended"] - said["began"]},
        )
        if after is not None:
            after()
        return measured


# Programs whose start costs nothing worth leaving out.
_STEADY = {"receiver", "publisher"}


def wide(place: Place, events: int, subscriptions: int = WIDE) -> Measured:
    """Events that match thousands of subscriptions each, published one after the other."""
    with trial(place) as bench:
        receiver, publisher, ledger = _shared(bench, subscriptions)
        bench.start_workers()
        _warm_up(bench, publisher, receiver, subscriptions)
        return _closed_loop(
            bench,
            "wide",
            receiver,
            ledger,
            publisher,
            **_to_all(ledger, subscriptions, events),
        )


def live(place: Place, events: int, subscriptions: int = 20) -> Measured:
    """Events that match a few subscriptions each, published one after the other."""
    with trial(place) as bench:
        receiver, publisher, ledger = _shared(bench, subscriptions)
        bench.start_workers()
        _warm_up(bench, publisher, receiver, subscriptions)
        return _closed_loop(
            bench,
            "live",
            receiver,
            ledger,
            publisher,
            **_to_all(ledger, subscriptions, events),
        )


def narrow(place: Place, events: int, in_hundreds: int) -> list[Measured]:
    """Each event is for one of 20,000 subscriptions: published singly, then in hundreds."""
    with trial(place) as bench:
        receiver, publisher, ledger = _own(bench, NARROW)
        bench.start_workers()
        _warm_up(bench, publisher, receiver, 20, **OWN)
        singly = _closed_loop(
            bench, "narrow", receiver, ledger, publisher, **_to_each(ledger, 0, NARROW, events)
        )
        ledger = bench.ledger()
        together = _closed_loop(
            bench,
            "narrow, in hundreds",
            receiver,
            ledger,
            publisher,
            **_to_each(ledger, 0, NARROW, in_hundreds),
            batch=100,
        )
        return [singly, together]


def latency(place: Place, seconds: float, subscriptions: int = 20) -> list[Measured]:
    """Fifty events a second to healthy receivers: each for one of them, then each for all."""
    with trial(place) as bench:
        receiver = bench.receiver()
        publisher = bench.publisher()
        publisher.ask(**_make(0, subscriptions, receiver, OWN))
        publisher.ask(**_make(subscriptions, subscriptions, receiver, SHARED))
        bench.start_workers()
        _warm_up(bench, publisher, receiver, subscriptions, **OWN)
        _warm_up(bench, publisher, receiver, subscriptions, first=subscriptions)
        events = round(RATE * seconds)
        found = []
        for name, targets in (
            ("latency", _to_each(bench.ledger(), 0, subscriptions, events)),
            (
                "latency, 20 each",
                _to_all(bench.ledger(), subscriptions, events, first=subscriptions),
            ),
        ):
            ledger = Ledger(bench.path(targets["ledger"]))
            found.append(
                _closed_loop(bench, name, receiver, ledger, publisher, **targets, rate=RATE)
            )
        return found


def _shared(bench: Trial, subscriptions: int) -> tuple[Receiver, Child, Ledger]:
    receiver, publisher = bench.receiver(), bench.publisher()
    publisher.ask(**_make(0, subscriptions, receiver, SHARED))
    return receiver, publisher, bench.ledger()


def _own(bench: Trial, subscriptions: int) -> tuple[Receiver, Child, Ledger]:
    receiver, publisher = bench.receiver(), bench.publisher()
    publisher.ask(**_make(0, subscriptions, receiver, OWN))
    return receiver, publisher, bench.ledger()


def _make(first: int, count: int, receiver: Receiver, kind: dict[str, str]) -> dict[str, Any]:
    return {
        "do": "subscribe",
        "first": first,
        "count": count,
        "ports": receiver.ports,
        "pattern": kind["pattern"],
    }
