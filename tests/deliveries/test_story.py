"""A delivery's story says what happened, why, and what comes next."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deliveries.judging.policy import Verdict
from deliveries.keeping.backlog import Backoff
from deliveries.keeping.story import Act, Situation, Step, story, verdict
from deliveries.models import Attempt, Delivery
from subscriptions.models import Subscription

NOW = datetime(2026, 4, 24, 16, 24, tzinfo=UTC)
ACTIVE = Situation(NOW, Subscription(enabled=True), None, 11, timedelta(days=7))


def at(minutes: float) -> datetime:
    """Minutes after it was published, which was an hour ago."""
    return NOW - timedelta(hours=1) + timedelta(minutes=minutes)


def attempt(number: int, minutes: float, code: int | None, outcome: str = "") -> Attempt:
    outcome = outcome or ("http" if code and code != 200 else "success" if code else "timeout")
    return Attempt(
        number=number, started_at=at(minutes), status_code=code, outcome=outcome, duration_ms=6000
    )


def delivery(status: str, **fields: Any) -> Delivery:
    return Delivery(status=status, created_at=at(0), **fields)


def told(
    one: Delivery, attempts: list[Attempt], *acts: Act, situation: Situation = ACTIVE
) -> list[Step]:
    return story(one, attempts, acts, situation)


@pytest.mark.parametrize(
    ("code", "outcome", "meaning", "why"),
    [
        (200, "success", Verdict.SUCCESS, "Arrived: 200 is a success."),
        (503, "http", Verdict.RETRY, "while retries are left: a 503 may be over soon"),
        (429, "http", Verdict.RETRY, "while retries are left"),
        (404, "http", Verdict.FINAL, "404 is not tried again, as 408, 425, 429 and 5xx are"),
        (301, "http", Verdict.FINAL, "301 is a redirect, and none is followed"),
        (410, "http", Verdict.GONE, "trips the circuit"),
        (None, "timeout", Verdict.RETRY, "no answer in time"),
        (None, "own_dns", Verdict.RETRY, "not the receiver's fault and uses up no retry"),
        (None, "unknown", Verdict.RETRY, "it may have arrived"),
        (None, "other", Verdict.RETRY, "there was no answer"),
        (None, "unsendable", Verdict.FINAL, "it cannot be sent"),
    ],
)
def test_why_an_attempt_is_or_is_not_followed_by_another(
    code: int | None, outcome: str, meaning: Verdict, why: str
) -> None:
    found, said = verdict(attempt(1, 0, code, outcome))
    assert found is meaning
    assert why in said


def test_from_the_publication_to_the_arrival_with_the_delays_between() -> None:
    one = delivery("succeeded", finished_at=at(11), attempt_count=2)
    steps = told(one, [attempt(1, 0.5, 503), attempt(2, 10, 200)])
    assert [step.title for step in steps] == ["Published", "Attempt 1", "Attempt 2", "Succeeded"]
    # From the end of the attempt before, which took six seconds.
    assert [step.after for step in steps] == [None, 30.0, 564.0, 54.0]
    assert [step.kind for step in steps] == ["busy", "bad", "good", "good"]


def test_the_next_attempt_and_which_retry_it_is() -> None:
    one = delivery("pending", next_attempt_at=at(65), attempt_count=1, retries_used=1)
    last = told(one, [attempt(1, 0.5, 503)])[-1]
    assert (last.title, last.at, last.why) == ("Attempt 2 is due", at(65), "Retry 1 of 11.")
    late = told(delivery("pending", next_attempt_at=at(0)), [])[-1]
    assert (late.title, late.why) == ("Attempt 1 is due", "It waits for a worker.")


def test_a_backoff_of_the_subscription_is_what_it_waits_for() -> None:
    backoff = Backoff(at(70), "it asked for it")
    one = delivery("pending", next_attempt_at=at(65))
    last = told(one, [], situation=replace(ACTIVE, backoff=backoff))[-1]
    assert last.at == at(70)
    assert "because it asked for it" in last.why
    earlier = replace(ACTIVE, backoff=Backoff(at(61), "it asked for it"))
    assert told(one, [], situation=earlier)[-1].at == at(65)


@pytest.mark.parametrize(
    ("subscription", "why"),
    [
        (None, "was deleted: it will be discarded"),
        (Subscription(enabled=False), "is paused: it will be held"),
        (Subscription(enabled=False, auto_disabled_at=NOW), "is tripped: it will be held"),
    ],
)
def test_what_is_pending_although_nothing_is_sent_says_why(
    subscription: Subscription | None, why: str
) -> None:
    one = delivery("pending", next_attempt_at=at(65))
    assert why in told(one, [], situation=replace(ACTIVE, subscription=subscription))[-1].why


def test_a_request_that_is_on_its_way() -> None:
    one = delivery("pending", next_attempt_at=at(0), lease_until=at(61))
    assert told(one, [])[-1].title == "Being sent"


@pytest.mark.parametrize(
    ("subscription", "why"),
    [
        (None, "will be discarded"),
        (Subscription(enabled=True), "is active again: it is released soon"),
        (Subscription(enabled=False), "is paused: it is sent when that is active again"),
    ],
)
def test_what_is_held_says_for_what_and_for_how_long(
    subscription: Subscription | None, why: str
) -> None:
    situation = replace(ACTIVE, subscription=subscription)
    last = told(delivery("held", held_at=at(5)), [], situation=situation)[-1]
    assert why in last.why
    assert ("until 2026-05-01 15:29:00" in last.why) == (subscription is not None)


@pytest.mark.parametrize(
    ("code", "why"),
    [(503, "All 11 retries are used up."), (404, "Its last answer is final.")],
)
def test_why_it_failed(code: int, why: str) -> None:
    last = told(delivery("failed", finished_at=at(1)), [attempt(1, 0.5, code)])[-1]
    assert last.why.startswith(why)


def test_what_somebody_did_stands_in_its_place() -> None:
    one = delivery("discarded", finished_at=at(30), last_error="discarded by an operator")
    acts = (Act(at(10), "resent", "alice (Admin)"), Act(at(30), "discarded", "bob (Command)"))
    steps = told(one, [attempt(1, 1, 404), attempt(2, 11, 503)], *acts)
    assert [step.title for step in steps] == [
        "Published", "Attempt 1", "Sent again", "Attempt 2", "Discarded", "Discarded",
    ]  # fmt: skip
    assert steps[2].why == "By alice (Admin)."
    assert steps[-1].why == "discarded by an operator. It can be sent again."


def test_what_followed_a_final_answer_was_asked_for() -> None:
    """By a replay of many, for example, of which the audit names the first ones only."""
    one = delivery("succeeded", finished_at=at(12))
    steps = told(one, [attempt(1, 1, 404), attempt(2, 11, 200)])
    assert [step.title for step in steps][2] == "Sent again"


def test_what_followed_the_last_retry_was_a_replay_of_many() -> None:
    """One that was on its way then was not among these."""
    two = replace(ACTIVE, retries=1)
    one = delivery("succeeded", finished_at=at(31))
    during, after = (Act(at(time), "resent", "alice", of_many=True) for time in (2, 20))
    attempts = [
        attempt(1, 1, None, "unknown"), attempt(2, 3, 503), attempt(3, 10, 503),
        attempt(4, 30, 200),
    ]  # fmt: skip
    steps = told(one, attempts, during, after, situation=two)
    assert [step.title for step in steps] == [
        "Published", "Attempt 1", "Attempt 2", "Attempt 3", "Sent again", "Attempt 4", "Succeeded",
    ]  # fmt: skip
    assert steps[4].why == "By alice."
    for status, said in (("pending", True), ("failed", False)):
        one = delivery(status, next_attempt_at=at(40), finished_at=at(11))
        steps = told(one, attempts[:3], after, situation=two)
        assert ("Sent again" in [step.title for step in steps]) == said
