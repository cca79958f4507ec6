"""What an attempt's result means, and what comes next. Pure functions on values."""

from __future__ import annotations

import email.utils
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

MIN_RETRY_AFTER = 1.0
MAX_RETRY_AFTER = 86400.0

# Besides network errors, timeouts and every 5xx (RFC 9110, section 15; RFC 8470 for 425).
RETRIED_STATUSES = frozenset({408, 425, 429})

# Failures of our own, in the words of `deliveries.transport.classify`: never the receiver's.
OWN_FAULTS = frozenset({"own_dns", "shutdown", "internal"})
# Failures that may be our own network's as well as the receiver's: nothing was answered.
NETWORK_FAULTS = frozenset({"timeout", "dns", "refused", "reset", "tls", "other"})
# Seconds until an attempt that failed through our own fault is made again.
OWN_FAULT_DELAY = 15.0


class Verdict(Enum):
    SUCCESS = "success"
    RETRY = "retry"
    FINAL = "final"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's result, judged.

    `excused`: it says nothing about the receiver's health, and the circuit never counts it.
    `own_fault`: it does not use up a retry either. `retry_after`: seconds the receiver asked for.
    """

    verdict: Verdict
    excused: bool = False
    own_fault: bool = False
    retry_after: float | None = None


SUCCESS = Outcome(Verdict.SUCCESS)
# What cannot be sent because its event is gone: there will be none later either.
NO_EVENT = Outcome(Verdict.FINAL, excused=True)


def judge(status_code: int | None, error: str, retry_after: float | None) -> Outcome:
    """Judge an answer by its status, or the lack of one by `error` (see `transport.classify`)."""
    if status_code is None:
        if error in OWN_FAULTS:
            return Outcome(Verdict.RETRY, excused=True, own_fault=True)
        return Outcome(Verdict.RETRY)
    if 200 <= status_code < 300:
        return SUCCESS
    if status_code == 410:
        return Outcome(Verdict.GONE)
    if status_code in RETRIED_STATUSES or 500 <= status_code < 600:
        excused = status_code == 429 or (status_code == 503 and retry_after is not None)
        return Outcome(Verdict.RETRY, excused=excused, retry_after=retry_after)
    return Outcome(Verdict.FINAL)


def parse_retry_after(text: str | None, now: datetime) -> float | None:
    """Seconds from `Retry-After` (RFC 9110, section 10.2.3), clamped to 1 s … 24 h.

    None for no header and for one that is neither seconds nor an HTTP date.
    """
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdigit():
        # int() refuses more than 4,300 digits; any such number is over the limit anyway.
        seconds = float(int(text)) if len(text) < 20 else MAX_RETRY_AFTER
    else:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if date.tzinfo is None:
            date = date.replace(tzinfo=UTC)
        try:
            seconds = (date - now).total_seconds()
        except OverflowError:
            return None
    return min(MAX_RETRY_AFTER, max(MIN_RETRY_AFTER, seconds))


def jittered(delay: float, jitter: float, random: float) -> float:
    """`delay` spread by the share `jitter` either way; `random` is from 0 up to 1."""
    return delay * (1 + jitter * (2 * random - 1))


@dataclass(frozen=True, slots=True)
class Schedule:
    """The delays between attempts, in seconds."""

    quick: tuple[float, ...]
    slow: tuple[float, ...]
    jitter: float = 0.2

    def delay(self, retries_used: int, random: float) -> float | None:
        """Seconds until the next retry, or None if all are used up."""
        delays: Sequence[float] = self.quick + self.slow
        if retries_used >= len(delays):
            return None
        return jittered(delays[retries_used], self.jitter, random)


# Not frozen: it is made for each request, and to make a frozen one takes 1.2 µs, not 0.2.
@dataclass(slots=True)
class Next:
    """What becomes of a delivery after an attempt.

    `status`: `succeeded`, `pending` (again after `delay` seconds) or `failed`.
    `result`: what the circuit hears, as in `circuit.tally`. `exhausted`: the retries are spent,
    though another might have helped.
    """

    status: str
    result: bool | None
    delay: float = 0.0
    retries_used: int = 0
    exhausted: bool = False


def decide(outcome: Outcome, retries_used: int, schedule: Schedule, random: float) -> Next:
    """What comes after an attempt that had `retries_used` retries before it.

    A failure counts for the circuit only if no quick retry is left: the last of the quick ones,
    each slow one, every final answer.
    """
    if outcome.verdict is Verdict.SUCCESS:
        return Next("succeeded", True, retries_used=retries_used)
    if outcome.verdict is not Verdict.RETRY:
        result = None if outcome.excused else False
        return Next("failed", result, retries_used=retries_used)
    if outcome.own_fault:
        delay = jittered(OWN_FAULT_DELAY, schedule.jitter, random)
        return Next("pending", None, delay=delay, retries_used=retries_used)
    counts = retries_used >= len(schedule.quick) and not outcome.excused
    result = False if counts else None
    planned = schedule.delay(retries_used, random)
    if planned is None:
        return Next("failed", result, retries_used=retries_used, exhausted=True)
    return Next(
        "pending",
        result,
        delay=max(planned, outcome.retry_after or 0.0),
        retries_used=retries_used + 1,
    )
