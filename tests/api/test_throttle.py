"""A key that asks too often is told when to ask again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from api import throttle
from api.problems import Problem
from deliveries.waking import wakeups
from tests.api.calls import Caller, is_problem


def allowed(key_id: int = 1, tries: int = 100) -> int:
    """How many of these requests in a row are let through."""
    count = 0
    for _ in range(tries):
        try:
            throttle.count(key_id)
            count += 1
        except Problem:
            continue
    return count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The process's time, which stands still unless it is set."""
    now = [1000.0]
    monkeypatch.setattr(throttle.time, "monotonic", lambda: now[0])
    return now


def as_another_process() -> None:
    throttle._buckets.clear()


@pytest.mark.django_db
@pytest.mark.urls("tests.api.routes")
def test_too_many_requests_are_429_and_say_when(no_buckets: Any, configure: Any) -> None:
    configure(api_rate_limit=2)
    caller, other = Caller(), Caller()
    answers = [caller.call("GET", "/api/v1/things") for _ in range(4)]
    assert [answer.status_code for answer in answers[:2]] == [200, 200]
    is_problem(answers[3], 429, "throttled")
    assert int(answers[3]["Retry-After"]) == 1
    assert other.call("GET", "/api/v1/things").status_code == 200


@pytest.mark.usefixtures("no_buckets")
@pytest.mark.parametrize("rate", [1, 5, 20, 50])
def test_a_seconds_worth_is_let_through_at_once(rate: int, configure: Any) -> None:
    configure(api_rate_limit=rate)
    assert allowed() in (rate, rate + 1)  # some time passes meanwhile


@pytest.mark.usefixtures("no_buckets")
def test_without_a_limit_nothing_is_counted(configure: Any, no_buckets: redis.Redis) -> None:
    configure(api_rate_limit=0)
    assert allowed(tries=1000) == 1000
    assert not throttle._buckets


@pytest.mark.usefixtures("no_buckets")
def test_processes_share_one_count(configure: Any) -> None:
    configure(api_rate_limit=10)
    assert allowed(tries=6) == 6
    as_another_process()
    assert allowed(tries=20) in (4, 5)
    as_another_process()
    assert allowed(tries=20) in (0, 1)


@pytest.mark.usefixtures("no_buckets")
def test_time_empties_the_bucket(clock: list[float], configure: Any) -> None:
    configure(api_rate_limit=100)
    wakeups.redis_outage._until = float("inf")  # on this clock alone
    assert allowed(tries=200) == 100
    clock[0] += 0.105
    assert allowed(tries=200) == 10
    clock[0] += 60
    assert allowed(tries=200) == 100


@pytest.mark.usefixtures("no_buckets")
def test_a_busy_key_costs_redis_a_call_for_a_twentieth_of_a_second(
    clock: list[float], configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(api_rate_limit=1000)
    calls = []
    shared: Callable[..., Any] = throttle._shared
    monkeypatch.setattr(
        throttle, "_shared", lambda *given: calls.append(given[1]) or shared(*given)
    )
    for _ in range(500):
        throttle.count(1)
        clock[0] += 0.001
    assert 9 <= len(calls) <= 12
    assert 450 <= sum(calls) <= 500


@pytest.mark.usefixtures("no_buckets")
def test_without_redis_requests_are_let_through_and_wait_for_it_once(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(api_rate_limit=20)
    calls = []

    def away() -> Any:
        def call(*args: Any, **named: Any) -> Any:
            calls.append(args)
            raise redis.ConnectionError("away")

        return call

    monkeypatch.setattr(throttle, "_script", away)
    assert allowed(tries=15) == 15
    assert len(calls) == 1
    # This process alone still counts.
    assert allowed(tries=100) in (5, 6)
