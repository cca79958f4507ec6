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
    throttle._outage._until = float("inf")  # on this clock alone
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


@pytest.mark.usefixtures("no_buckets")
def test_what_goes_wrong_here_keeps_no_wake_up_from_redis(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(api_rate_limit=20)
    monkeypatch.setattr(throttle, "_ADD", "return redis.call('NOTHING')")
    throttle._script.cache_clear()
    assert allowed(tries=1) == 1
    assert throttle._outage.lasting()
    assert not wakeups.redis_outage.lasting()
    monkeypatch.undo()
    throttle._script.cache_clear()
    configure(api_rate_limit=20)
    throttle._outage._until = 0.0
    assert allowed(tries=1) == 1
    assert not throttle._outage._away


@pytest.fixture
def clock_of_redis(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis's time is the process's too, and nothing ends there."""
    script = throttle._ADD.replace("redis.call('TIME')", "{ARGV[4], 0}").replace(
        ", 'PX', 1 + math.ceil(kept / 1000)", ""
    )
    assert script.count("ARGV[4]") == 1
    assert "PX" not in script
    registered = throttle.client().register_script(script)
    monkeypatch.setattr(
        throttle,
        "_script",
        lambda: lambda names, given, **named: registered(names, [*given, clock[0]], **named),
    )


@pytest.mark.usefixtures("no_buckets", "clock_of_redis")
@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("rate", [20, 200, 1000])
def test_processes_that_are_flooded_let_the_rate_through_together(
    rate: int,
    processes: int,
    clock: list[float],
    configure: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(api_rate_limit=rate)
    buckets: list[dict[int, Any]] = [{} for _ in range(processes)]
    let_through = []
    for millisecond in range(5000):
        clock[0] = 1000 + millisecond / 1000
        for own in buckets:
            monkeypatch.setattr(throttle, "_buckets", own)
            let_through += [millisecond] * allowed(tries=2 * rate // 1000 + 1)
    # A bucket for each second, the one that was empty, and a twentieth for each process.
    assert len(let_through) <= rate * (5 + 1 + processes / 20)
    # In the long run it is the rate and nothing more.
    late = sum(millisecond >= 2000 for millisecond in let_through)
    assert rate * 3 * 0.9 <= late <= rate * 3 * 1.05
