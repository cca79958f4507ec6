"""The checks of the fault suite fail when they should: each is shown one thing that is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.faults.growth import Look, grown
from tests.faults.history import Attempt, Replayed, replay
from tests.faults.invariants import (
    Circuit,
    Delivery,
    Facts,
    history_problems,
    problems,
    summary,
)
from tests.faults.receivers import Request

KEY = ("lane", "event")


def request(status: int = 200, digest: bytes = b"body", key: tuple[str, str] = KEY) -> Request:
    return Request(at=1.0, lane=key[0], id=key[1], digest=digest, status=status)


def attempt(status: int | None = 200, *, number: int = 1, outcome: str = "", **changed: float):
    outcome = outcome or ("success" if status == 200 else "http")
    return Attempt(
        delivery=int(changed.get("delivery", 1)),
        number=number,
        outcome=outcome,
        status=status,
        started=changed.get("started", float(number)),
        seconds=0.1,
    )


@pytest.fixture
def facts() -> Facts:
    """One event, published, delivered, written down; nothing is wrong."""
    return Facts(
        wanted={KEY},
        deliveries={KEY: [Delivery(1, "succeeded", 1, due=False, overdue=0, leased=False)]},
        attempts={1: [attempt()]},
        history={"lane": [attempt()]},
        requests=[request()],
        circuits={"lane": Circuit(enabled=True, tripped=False, failures=0, epoch=1, bumped=1)},
    )


def test_nothing_is_wrong_where_nothing_is(facts: Facts) -> None:
    assert [*problems(facts), *history_problems(facts)] == []
    found = summary(facts)
    assert (found.accepted, found.deliveries, found.requests, found.duplicates) == (1, 1, 1, 0)


def _row(facts: Facts, **changed: object) -> None:
    facts.deliveries[KEY] = [replace(facts.deliveries[KEY][0], **changed)]


def _circuit(facts: Facts, **changed: object) -> None:
    facts.circuits["lane"] = replace(facts.circuits["lane"], **changed)


@pytest.mark.parametrize(
    ("breaking", "said"),
    [
        (lambda f: f.deliveries.clear(), "0 deliveries"),
        (lambda f: f.deliveries[KEY].append(f.deliveries[KEY][0]), "2 deliveries"),
        (lambda f: f.requests.clear(), "no receiver has seen it"),
        (lambda f: f.requests.append(request(key=("lane", "x"))), "there is no delivery"),
        (lambda f: _row(f, status="lost"), "has the status 'lost'"),
        (lambda f: _row(f, leased=True), "nobody sends"),
        (lambda f: _row(f, status="pending"), "without a due time"),
        (lambda f: _row(f, status="pending", due=True, overdue=99.0), "forgotten"),
        (lambda f: _row(f, status="held"), "held for a subscription that is not stopped"),
        (lambda f: f.attempts.clear(), "1 attempts are counted, recorded are []"),
        (lambda f: f.requests.append(request()), "2 requests came, 1 attempts are recorded"),
        (lambda f: f.requests.__setitem__(0, request(500)), "the receiver does not"),
        (lambda f: f.requests.append(request(digest=b"x")), "2 different bodies"),
        (lambda f: _circuit(f, epoch=2), "1 trips, 0 signals"),
        (lambda f: f.tripped_signals.update(["lane"]), "0 trips, 1 signals"),
        (lambda f: _circuit(f, tripped=True), "enabled and tripped"),
    ],
)
def test_what_is_wrong_is_said(facts: Facts, breaking: Callable[[Facts], None], said: str) -> None:
    breaking(facts)
    assert any(said in one for one in problems(facts)), list(problems(facts))


def test_a_request_more_than_the_attempts_is_right_if_one_says_unknown(facts: Facts) -> None:
    facts.requests.append(request())
    facts.attempts[1].append(attempt(None, number=2, outcome="unknown"))
    _row(facts, attempt_count=2)
    assert list(problems(facts)) == []
    assert summary(facts).unknown == summary(facts).duplicates == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"failures": 3}, "3 failures, by its history 0"),
        ({"tripped": True, "enabled": False}, "tripped is True, by its history False"),
    ],
)
def test_a_circuit_that_differs_from_its_history_is_said(
    facts: Facts, changed: dict[str, object], said: str
) -> None:
    _circuit(facts, **changed)
    assert any(said in one for one in history_problems(facts))


def test_a_signal_without_a_trip_in_the_history_is_said(facts: Facts) -> None:
    facts.tripped_signals = Counter(["lane"])
    assert any("1 signals, 0 trips" in one for one in history_problems(facts))


def failures(*statuses: int) -> list[Attempt]:
    return [attempt(status, number=n, started=10.0 * n) for n, status in enumerate(statuses, 1)]


@pytest.mark.parametrize(
    ("history", "quick", "expected"),
    [
        (failures(500, 500, 500), 3, Replayed(0, 0, False)),
        (failures(500, 500, 500, 500), 3, Replayed(1, 0, False)),
        (failures(404), 3, Replayed(1, 0, False)),
        (failures(500, 200, 500), 0, Replayed(1, 0, False)),
        (failures(429, 429, 429), 0, Replayed(0, 0, False)),
        (failures(500, 500), 0, Replayed(2, 1, True)),
        (failures(500, 500, 500), 0, Replayed(2, 1, True)),
        (failures(410), 3, Replayed(1, 1, True)),
        # The probe's success closes the circuit, and what follows counts anew.
        (failures(500, 500, 200, 500), 0, Replayed(1, 1, False)),
        ([attempt(None, outcome="timeout")], 0, Replayed(1, 0, False)),
        ([attempt(None, outcome="unknown")], 0, Replayed(0, 0, False)),
        ([attempt(None, outcome="own_dns")], 0, Replayed(0, 0, False)),
    ],
)
def test_the_history_is_replayed(history: list[Attempt], quick: int, expected: Replayed) -> None:
    assert replay(history, quick=quick, threshold=2) == expected


def test_growth_is_said() -> None:
    before = Look(100 * 2**20, 10, 20, 5)
    assert grown(before, before) == []
    assert grown(before, Look(120 * 2**20, 14, 24, 9)) == [
        "100 → 120 MiB",
        "10 → 14 threads",
        "20 → 24 files",
        "5 → 9 connections",
    ]
