"""A lane on its way: the deliveries of one claim, a window of them in flight at a time."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from deliveries.claiming.claims import ClaimedDelivery, ClaimedLane
from deliveries.judging.policy import (
    NO_EVENT,
    UNSIGNABLE,
    Next,
    Outcome,
    Schedule,
    Verdict,
    decide,
)
from deliveries.sending.request import Judged, broken, judge_response, prepare, unsendable
from deliveries.settling.settle import LaneEnd, Result
from deliveries.transport import Result as Answer
from subscriptions.conf import conf

if TYPE_CHECKING:
    from deliveries.sending.worker import Sender

logger = logging.getLogger(__name__)

# How long after its claim a lane may begin requests, in seconds: then it looks anew whether its
# subscription is still enabled, and still at the same address with the same secrets.
FRESH = 1.0


class Run:
    """One `deliver` task: finished once none of its lanes is being served any more."""

    def __init__(self, *, recovering: bool, on_finish: Callable[[], None]) -> None:
        self.recovering = recovering
        self._on_finish = on_finish
        self.deadline = time.monotonic() + conf().time_slice
        self._open = 1
        self._lock = threading.Lock()
        self._finished = threading.Event()

    def begin(self) -> None:
        with self._lock:
            self._open += 1

    def end(self) -> None:
        with self._lock:
            self._open -= 1
            finished = self._open == 0
        if finished:
            self._finished.set()
            self._on_finish()

    def wait(self, timeout: float | None = None) -> bool:
        return self._finished.wait(timeout)


@dataclass(slots=True)
class LaneExit:
    """A lane that is left. `wake_in`: seconds until it is worth looking at again."""

    run: Run
    end: LaneEnd
    wake_in: list[float]
    give_up_at: float = 0.0

    @property
    def lane(self) -> ClaimedLane:
        return self.end.lane


class Lane:
    """The deliveries of one claim on their way: at most `window` requests at once.

    Called by the claim stage once, by the transport's thread as answers come, and by the settle
    stage as they are written down.
    """

    __slots__ = (
        "_claimed",
        "_failures",
        "_fresh_until",
        "_in_flight",
        "_left",
        "_lock",
        "_most",
        "_queue",
        "_rest",
        "_retries",
        "_retrying",
        "_run",
        "_schedule",
        "_sender",
        "_since_growth",
        "_stopped",
        "_token",
        "_window",
    )

    def __init__(self, sender: Sender, run: Run, claimed: ClaimedLane, token: UUID) -> None:
        values = conf()
        self._sender = sender
        self._run = run
        self._claimed = claimed
        self._token = token
        self._queue = deque(claimed.deliveries)
        self._window = claimed.window
        self._most = claimed.max_in_flight
        self._failures = claimed.failures
        self._fresh_until = time.monotonic() + FRESH
        self._in_flight = 0
        self._left = False
        self._since_growth = 0
        self._stopped = False
        self._rest = 0.0
        self._retries: list[float] = []
        self._retrying: tuple[int, int] | None = None
        self._schedule = Schedule(values.quick_retries, values.slow_retries, values.retry_jitter)
        self._lock = threading.Lock()

    def start(self) -> None:
        self._advance()

    def _advance(self) -> None:
        """Send as much as the window allows; leave the lane once nothing is in flight."""
        while True:
            with self._lock:
                if self._sender.stopping:
                    self._stopped = True
                if self._stopped or not self._queue or self._in_flight >= self._window:
                    leave = self._in_flight == 0 and self._ends_now()
                    break
                delivery = self._queue.popleft()
                if delivery.payload is None and not delivery.unsendable:
                    # Its body did not fit into this claim; the next one begins with it.
                    self._queue.appendleft(delivery)
                    self._stopped = True
                    continue
                self._in_flight += 1
            self._send(delivery)
        if leave:
            more = bool(self._queue) or self._claimed.more
            self._sender.settle(self._exit(), urgent=more)

    def _ends_now(self) -> bool:
        """Whether nothing more is to be sent. True only once: whoever hears it leaves the lane."""
        over = not self._left and (self._stopped or not self._queue)
        self._left |= over
        return over

    def _send(self, delivery: ClaimedDelivery) -> None:
        started = time.time()
        try:
            if delivery.unsendable:
                self._answered(delivery, started, unsendable(NO_EVENT, delivery.unsendable))
                return
            if self._claimed.unsendable:
                logger.error(
                    "Nothing can be sent to subscription %s; its deliveries wait: %s",
                    self._claimed.subscription_id,
                    self._claimed.unsendable,
                )
                self._answered(delivery, started, unsendable(UNSIGNABLE, self._claimed.unsendable))
                return
            request = prepare(self._claimed, delivery, int(started))
            self._sender.transport.submit(
                request, lambda answer: self._on_answer(delivery, started, answer)
            )
        except Exception as error:
            logger.exception("delivery %d could not be sent", delivery.id)
            self._answered(delivery, started, broken(error))

    def _on_answer(self, delivery: ClaimedDelivery, started: float, answer: Answer) -> None:
        try:
            judged = judge_response(answer)
        except Exception as error:
            logger.exception("the answer to delivery %d could not be read", delivery.id)
            judged = broken(error)
        self._answered(delivery, started, judged)

    def _settled(self, written: bool) -> None:
        """A request is in flight until its result is written down: a worker that dies has sent
        no more than `max_in_flight` requests of which nobody knows."""
        with self._lock:
            self._in_flight -= 1
            # Looked at only now, so that each claim sends something, however late it came.
            now = time.monotonic()
            if not written or now > self._fresh_until or now > self._run.deadline:
                self._stopped = True
        self._advance()

    def _answered(self, delivery: ClaimedDelivery, started: float, judged: Judged) -> None:
        spread = random.random()  # noqa: S311 - spreads retries, guards nothing
        following = decide(judged.outcome, delivery.retries_used, self._schedule, spread)
        delivery.payload = None  # not needed any more, and others' may be large
        with self._lock:
            self._learn(delivery, judged.outcome, following)
            # The last result takes the end of its lane with it, in one transaction. Only if all
            # others are written down: a lane is never left before its results.
            leave = self._in_flight == 1 and self._ends_now()
            # The next request waits until this one's result is written down.
            awaited = bool(self._queue) and self._in_flight >= self._window
        result = Result(
            lane=self._claimed,
            delivery=delivery,
            next=following,
            verdict=judged.outcome.verdict,
            excused=judged.outcome.excused,
            outcome=judged.code,
            status_code=judged.status_code,
            error=judged.error,
            response_body=judged.response_body,
            remote_address=judged.remote_address,
            started_at=started,
            duration_ms=judged.duration_ms,
            settled=self._settled,
        )
        if leave:
            self._sender.settle(result, self._exit(), urgent=self._claimed.more)
        else:
            self._sender.settle(result, urgent=awaited)

    def _learn(self, delivery: ClaimedDelivery, outcome: Outcome, following: Next) -> None:
        """Grow the window with success; after a failure begin nothing more in this claim."""
        if outcome.verdict is Verdict.SUCCESS:
            self._failures = 0
            self._since_growth += 1
            if self._since_growth >= self._window:
                self._since_growth = 0
                self._window = min(self._most, self._window * 2)
            return
        if following.status == "pending":
            self._retries.append(following.delay)
        self._claimed.well = False
        if outcome.own_fault:
            if outcome.verdict is Verdict.RETRY:
                self._stopped = True
                self._rest = max(self._rest, following.delay)
            return
        self._stopped = True
        self._failures += 1
        self._window = 1
        if outcome.retry_after is not None:
            self._rest = max(self._rest, outcome.retry_after)
        quick = self._schedule.quick
        in_quick = following.status == "pending" and following.retries_used <= len(quick)
        if in_quick and (self._retrying is None or following.retries_used > self._retrying[0]):
            self._retrying = (following.retries_used, delivery.id)
        if self._failures > 1 and outcome.verdict is Verdict.RETRY:
            # Twice in a row is no accident: rest, so that a dead receiver is not hammered.
            pause = following.delay if in_quick else quick[0] if quick else 1.0
            self._rest = max(self._rest, pause)

    def _exit(self) -> LaneExit:
        end = LaneEnd(
            lane=self._claimed,
            token=self._token,
            unsent=list(self._queue),
            window=self._window,
            failures=self._failures,
            rest=self._rest,
            retrying_id=self._retrying[1] if self._retrying else None,
        )
        # At the end of the rest whatever is due goes out; a retry that is due later than that
        # may have nobody else to announce it.
        wake_in = [self._rest] if self._rest > 0 else []
        later = [delay for delay in self._retries if delay > self._rest]
        return LaneExit(self._run, end, wake_in + sorted(later)[:1])
