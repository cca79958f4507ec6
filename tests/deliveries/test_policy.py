"""Every rule of retrying, on values."""

from datetime import UTC, datetime, timedelta

import pytest

from deliveries.judging.policy import (
    NO_EVENT,
    OWN_FAULT_DELAY,
    Next,
    Outcome,
    Schedule,
    Verdict,
    decide,
    jittered,
    judge,
    parse_retry_after,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCHEDULE = Schedule(quick=(1.0, 2.0, 4.0), slow=(300.0, 1800.0), jitter=0.2)
FAILED = Outcome(Verdict.RETRY)
MIDDLE = 0.5  # the random number that leaves a delay as it is


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
def test_every_2xx_is_a_success(status: int) -> None:
    assert judge(status, "", None) == Outcome(Verdict.SUCCESS)


@pytest.mark.parametrize("status", [408, 425, 500, 501, 502, 503, 504, 507, 599])
def test_a_server_error_or_a_timeout_answer_is_retried(status: int) -> None:
    assert judge(status, "", None) == Outcome(Verdict.RETRY)


@pytest.mark.parametrize(
    "error", ["timeout", "dns", "refused", "reset", "tls", "protocol", "other"]
)
def test_every_network_error_is_retried(error: str) -> None:
    assert judge(None, error, None) == Outcome(Verdict.RETRY)


@pytest.mark.parametrize(
    "status", [301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 422, 451, 600]
)
def test_every_other_answer_is_final(status: int) -> None:
    assert judge(status, "", None) == Outcome(Verdict.FINAL)


def test_gone_is_its_own_verdict() -> None:
    assert judge(410, "", None) == Outcome(Verdict.GONE)


@pytest.mark.parametrize("retry_after", [None, 30.0])
def test_too_many_requests_never_counts(retry_after: float | None) -> None:
    assert judge(429, "", retry_after) == Outcome(
        Verdict.RETRY, excused=True, retry_after=retry_after
    )


def test_unavailable_counts_unless_it_says_when_to_come_back() -> None:
    assert not judge(503, "", None).excused
    assert judge(503, "", 60.0) == Outcome(Verdict.RETRY, excused=True, retry_after=60.0)


@pytest.mark.parametrize("error", ["own_dns", "shutdown", "internal"])
def test_our_own_faults_count_for_nothing_and_use_up_no_retry(error: str) -> None:
    outcome = judge(None, error, None)
    assert outcome.excused
    assert decide(outcome, 2, SCHEDULE, MIDDLE) == Next(
        "pending", None, delay=OWN_FAULT_DELAY, retries_used=2
    )


def test_what_has_no_event_ends_at_once_and_blames_nobody() -> None:
    assert decide(NO_EVENT, 0, SCHEDULE, MIDDLE) == Next("failed", None)


@pytest.mark.parametrize(("used", "delay"), [(0, 1.0), (1, 2.0), (2, 4.0)])
def test_a_failure_with_a_quick_retry_left_does_not_count(used: int, delay: float) -> None:
    following = decide(FAILED, used, SCHEDULE, MIDDLE)
    assert following == Next("pending", None, delay=delay, retries_used=used + 1)


@pytest.mark.parametrize(("used", "delay"), [(3, 300.0), (4, 1800.0)])
def test_the_last_quick_failure_and_each_slow_one_counts(used: int, delay: float) -> None:
    following = decide(FAILED, used, SCHEDULE, MIDDLE)
    assert following == Next("pending", False, delay=delay, retries_used=used + 1)


def test_a_delivery_whose_retries_are_spent_has_failed() -> None:
    assert decide(FAILED, 5, SCHEDULE, MIDDLE) == Next(
        "failed", False, retries_used=5, exhausted=True
    )


def test_without_slow_retries_a_delivery_fails_after_its_quick_ones() -> None:
    quick_only = Schedule(quick=(1.0,), slow=())
    assert decide(FAILED, 0, quick_only, MIDDLE).status == "pending"
    assert decide(FAILED, 1, quick_only, MIDDLE) == Next(
        "failed", False, retries_used=1, exhausted=True
    )


@pytest.mark.parametrize("verdict", [Verdict.FINAL, Verdict.GONE])
def test_a_final_answer_counts_at_once(verdict: Verdict) -> None:
    assert decide(Outcome(verdict), 0, SCHEDULE, MIDDLE) == Next("failed", False)


def test_a_success_is_heard_by_the_circuit() -> None:
    assert decide(Outcome(Verdict.SUCCESS), 3, SCHEDULE, MIDDLE) == Next(
        "succeeded", True, retries_used=3
    )


def test_retry_after_is_honoured_when_it_is_longer_than_the_schedule() -> None:
    asked = Outcome(Verdict.RETRY, excused=True, retry_after=120.0)
    assert decide(asked, 0, SCHEDULE, MIDDLE).delay == 120.0
    assert decide(asked, 3, SCHEDULE, MIDDLE).delay == 300.0


def test_a_throttled_attempt_does_not_count_even_after_the_quick_retries() -> None:
    assert decide(Outcome(Verdict.RETRY, excused=True), 4, SCHEDULE, MIDDLE).result is None


@pytest.mark.parametrize(("random", "delay"), [(0.0, 80.0), (0.5, 100.0), (1.0, 120.0)])
def test_jitter_spreads_a_delay_both_ways(random: float, delay: float) -> None:
    assert jittered(100.0, 0.2, random) == pytest.approx(delay)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 7 ", 7.0),
        ("0", 1.0),
        ("86401", 86400.0),
        ("9" * 5000, 86400.0),
        ("Fri, 02 Jan 2026 03:05:05 GMT", 60.0),
        ("Fri, 02 Jan 2026 03:04:00 GMT", 1.0),
        ("Sat, 02 Jan 2027 03:04:05 GMT", 86400.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("Fri, 99 Foo 2026 03:04:05 GMT", None),
    ],
)
def test_retry_after_is_read_and_clamped(text: str | None, seconds: float | None) -> None:
    assert parse_retry_after(text, NOW) == seconds


def test_a_retry_after_without_a_zone_is_taken_as_utc() -> None:
    date = (NOW + timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S -0000")
    assert parse_retry_after(date, NOW) == 30.0
