"""A delivery's story: what happened to it, why, and what comes next. Pure functions on values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from deliveries.judging.policy import RETRIED_STATUSES, Verdict, judge
from deliveries.keeping.backlog import Backoff
from deliveries.models import Attempt, Delivery
from subscriptions.models import Subscription
from subscriptions.times import exact

_NO_ANSWER = {
    "timeout": "there was no answer in time",
    "dns": "the receiver's name was not found",
    "refused": "the connection was refused",
    "reset": "the connection was closed before an answer",
    "tls": "TLS failed",
    "own_dns": "our own name server did not answer",
    "shutdown": "the worker was being shut down",
    "internal": "the sender itself failed",
    "unknown": "the worker stopped before it could record what came of it; it may have arrived",
}
_RETRIED = "Tried again while retries are left"
_FINAL = {
    "unsendable": "it cannot be sent",
    "unwritable": "its result could not be recorded",
}


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody did to the delivery: `resent` or `discarded`. `of_many`: it was sent again only
    if it was finished then, for nobody knows which these were."""

    at: datetime
    action: str
    who: str
    of_many: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """`kind`: `good`, `idle`, `busy`, `warn` or `bad`. `after`: seconds since the step before.
    `why`: one sentence or two."""

    at: datetime | None
    title: str
    kind: str
    why: str = ""
    attempt: Attempt | None = None
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a delivery's future depends on besides itself. `subscription` is None if it was deleted;
    `retries`: how many are scheduled; `hold`: how long something is held."""

    now: datetime
    subscription: Subscription | None
    backoff: Backoff | None
    retries: int
    hold: timedelta


def verdict(attempt: Attempt) -> tuple[Verdict, str]:
    """What the attempt's result means, and why."""
    code = attempt.status_code
    if attempt.outcome in _FINAL:
        return Verdict.FINAL, f"Final: {_FINAL[attempt.outcome]}."
    judged = judge(code, attempt.outcome, None)
    if code is None:
        why = _NO_ANSWER.get(attempt.outcome, "there was no answer")
        own = ", which is not the receiver's fault and uses up no retry" * judged.own_fault
        return judged.verdict, f"{_RETRIED}: {why}{own}."
    if judged.verdict is Verdict.SUCCESS:
        return judged.verdict, f"Arrived: {code} is a success."
    if judged.verdict is Verdict.GONE:
        return judged.verdict, "Final: 410 says that the receiver is gone, and trips the circuit."
    if judged.verdict is Verdict.RETRY:
        return judged.verdict, f"{_RETRIED}: a {code} may be over soon."
    if 300 <= code < 400:
        return judged.verdict, f"Final: {code} is a redirect, and none is followed."
    retried = ", ".join(map(str, sorted(RETRIED_STATUSES)))
    return judged.verdict, f"Final: {code} is not tried again, as {retried} and 5xx are."


def story(
    delivery: Delivery,
    attempts: Sequence[Attempt],
    acts: Sequence[Act],
    situation: Situation,
) -> list[Step]:
    """From the publication to what comes next. `attempts` and `acts`: the oldest first."""
    steps = [Step(delivery.created_at, "Published", "busy")]
    before: Attempt | None = None
    left, final, tries = list(acts), False, 0
    for attempt in attempts:
        while left and left[0].at <= attempt.started_at:
            act = left.pop(0)
            if not act.of_many or final or tries > situation.retries:
                steps.append(_did(act))
                final, tries = False, 0
        if final and steps[-1].attempt is not None:
            steps.append(Step(None, "Sent again", "busy", "Somebody asked for it."))
            tries = 0
        steps.append(_attempted(attempt))
        final = verdict(attempt)[0] is not Verdict.RETRY
        tries += _uses_a_retry(attempt)
        before = attempt
    open_again = delivery.status in (Delivery.Status.PENDING, Delivery.Status.HELD) and (
        final or tries > situation.retries
    )
    for act in left:
        if not act.of_many or open_again:
            steps.append(_did(act))
            open_again = False
    steps.append(_now(delivery, before, situation))
    return _spaced(steps)


def _uses_a_retry(attempt: Attempt) -> bool:
    own_fault = judge(attempt.status_code, attempt.outcome, None).own_fault
    return attempt.outcome != "unknown" and not own_fault


def _did(act: Act) -> Step:
    done = {"resent": "Sent again", "discarded": "Discarded"}.get(act.action, act.action)
    return Step(act.at, done, "idle", f"By {act.who}.")


def _attempted(attempt: Attempt) -> Step:
    meaning, why = verdict(attempt)
    kind = "good" if meaning is Verdict.SUCCESS else "bad"
    return Step(attempt.started_at, f"Attempt {attempt.number}", kind, why, attempt)


def _now(delivery: Delivery, last: Attempt | None, situation: Situation) -> Step:
    """Where it stands, and what comes next."""
    subscription, status = situation.subscription, delivery.status
    if status == Delivery.Status.SUCCEEDED:
        return Step(delivery.finished_at, "Succeeded", "good")
    if status == Delivery.Status.DISCARDED:
        why = delivery.last_error or "Nobody knows why"
        return Step(delivery.finished_at, "Discarded", "idle", f"{why}. It can be sent again.")
    if status == Delivery.Status.FAILED:
        why = "Its last answer is final."
        if last is not None and verdict(last)[0] is Verdict.RETRY:
            why = f"All {situation.retries} retries are used up."
        return Step(delivery.finished_at, "Failed", "bad", f"{why} It can be sent again.")
    if status == Delivery.Status.HELD:
        return Step(delivery.held_at, "Held", "warn", _held(delivery, situation))
    return _pending(delivery, subscription, situation)


def _held(delivery: Delivery, situation: Situation) -> str:
    subscription = situation.subscription
    if subscription is None:
        return "Its subscription was deleted: it will be discarded."
    until = ""
    if delivery.held_at is not None:
        until = f" If it is held until {exact(delivery.held_at + situation.hold)}, it is discarded."
    if subscription.enabled:
        return f"Its subscription is active again: it is released soon.{until}"
    return f"Its subscription is {subscription.state}: it is sent when that is active again.{until}"


def _pending(delivery: Delivery, subscription: Subscription | None, situation: Situation) -> Step:
    at, now = delivery.next_attempt_at, situation.now
    assert at is not None
    if delivery.lease_until is not None and delivery.lease_until > now:
        why = f"A worker has it until {exact(delivery.lease_until)}, and its request is on its way."
        return Step(None, "Being sent", "busy", why)
    if subscription is None:
        return Step(None, "Not sent", "warn", "Its subscription was deleted: it will be discarded.")
    if not subscription.enabled:
        why = f"Its subscription is {subscription.state}: it will be held."
        return Step(None, "Not sent", "warn", why)
    which = f"Attempt {delivery.attempt_count + 1}"
    why = ""
    if delivery.retries_used:
        why = f"Retry {delivery.retries_used} of {situation.retries}."
    backoff = situation.backoff
    if backoff is not None and backoff.until > at:
        why = f"Its subscription is {backoff}. {why}".strip()
        return Step(backoff.until, f"{which} is due", "warn", why)
    if at <= now:
        return Step(at, f"{which} is due", "busy", f"It waits for a worker. {why}".strip())
    return Step(at, f"{which} is due", "busy", why)


def _spaced(steps: list[Step]) -> list[Step]:
    """With the seconds between each and the one before."""
    spaced: list[Step] = []
    last: datetime | None = None
    for step in steps:
        after: Any = None
        if step.at is not None:
            after = None if last is None else max((step.at - last).total_seconds(), 0.0)
            last = step.at
            if step.attempt is not None:
                last += timedelta(milliseconds=step.attempt.duration_ms)
        spaced.append(Step(step.at, step.title, step.kind, step.why, step.attempt, after))
    return spaced
