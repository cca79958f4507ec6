"""A lane: the deliveries of one claim on their way, a window of them in flight at a time.

Values go in and values come out; nothing here does anything. `deliveries.sending.sender` owns the
lanes and asks: what is to be sent next, what follows from this answer, is the lane over?
"""

from __future__ import annotations

from collections import deque

from deliveries.judging.policy import Next, Outcome, Schedule, Verdict, decide
from deliveries.judging.response import Judged
from deliveries.values import ClaimedDelivery, ClaimedLane, LaneEnd, Result


class OpenLane:
    """What is known of one claim's lane while it is sent for. Used by one thread.

    `begin_until`: after this, by the monotonic clock, the lane begins no request any more: then
    a new claim looks again whether the subscription is still enabled, and still at the same
    address with the same secrets. `start_by`: a request that has not been started then is
    given back. `max_backoff`: the longest backoff of the lane, in seconds.
    """

    __slots__ = (
        "_backoff",
        "_backoff_reason",
        "_begin_until",
        "_failures",
        "_max_backoff",
        "_queue",
        "_released",
        "_retries",
        "_retrying",
        "_schedule",
        "_since_growth",
        "_stopped",
        "_window",
        "claimed",
        "in_flight",
        "recovering",
        "start_by",
    )

    def __init__(
        self,
        claimed: ClaimedLane,
        schedule: Schedule,
        *,
        recovering: bool,
        begin_until: float,
        start_by: float,
        max_backoff: float,
    ) -> None:
        self.claimed = claimed
        self.recovering = recovering
        self.in_flight = 0
        self._schedule = schedule
        self._begin_until = begin_until
        self.start_by = start_by
        self._max_backoff = max_backoff
        self._queue = deque(claimed.deliveries)
        self._window = claimed.window
        self._failures = claimed.failures
        self._since_growth = 0
        self._stopped = False
        self._released = False
        self._backoff = 0.0
        self._backoff_reason = ""
        self._retries: list[float] = []
        self._retrying: tuple[int, int] | None = None

    def next_delivery(self) -> ClaimedDelivery | None:
        """The next delivery to send, if the window has room; it is in flight from now on."""
        if self._stopped or not self._queue or self.in_flight >= self._window:
            return None
        if self._queue[0].payload is None and not self._queue[0].unsendable:
            # Its body did not fit into this claim; the next one begins with it.
            self._stopped = True
            return None
        self.in_flight += 1
        return self._queue.popleft()

    def not_sent(self, delivery: ClaimedDelivery) -> None:
        """`delivery` was not sent after all; it is given back with the others."""
        self.in_flight -= 1
        self._queue.appendleft(delivery)
        self._stopped = True

    def stop(self) -> None:
        """Begin no request any more."""
        self._stopped = True

    def answered(
        self, delivery: ClaimedDelivery, judged: Judged, started_at: float, spread: float
    ) -> Result:
        """What follows from an answer. `spread`, from 0 up to 1, spreads retries in time."""
        following = decide(judged.outcome, delivery.retries_used, self._schedule, spread)
        self._learn(delivery, judged, following)
        return Result(self.claimed, delivery, judged, following, started_at)

    def settled(self, *, written: bool, now: float) -> None:
        """A result was written down, or given up. Only now its request is no longer in flight: a
        worker that dies has sent no more than `max_in_flight` requests without a record."""
        self.in_flight -= 1
        if not written or now > self._begin_until:
            self._stopped = True

    def is_blocked(self) -> bool:
        """Whether the next request waits for a result to be written."""
        return bool(self._queue) and not self._stopped and self.in_flight >= self._window

    def end(self, *, last: bool = False) -> LaneEnd | None:
        """How the lane ends, once, if it is over.

        `last`: the one request that is in flight is answered, and its result goes with the end.
        """
        if self._released or self.in_flight > last or not (self._stopped or not self._queue):
            return None
        self._released = True
        # At the end of the backoff whatever is due goes out; a retry that is due later than that
        # needs a wake-up of its own.
        wake_in = [self._backoff] if self._backoff > 0 else []
        later = [delay for delay in self._retries if delay > self._backoff or not self._backoff]
        return LaneEnd(
            lane=self.claimed,
            unsent=list(self._queue),
            window=self._window,
            failures=self._failures,
            backoff=self._backoff,
            backoff_reason=self._backoff_reason,
            retrying_id=self._retrying[1] if self._retrying else None,
            wake_in=wake_in + sorted(later)[:1],
        )

    def _learn(self, delivery: ClaimedDelivery, judged: Judged, following: Next) -> None:
        """Grow the window with success; after a failure begin nothing more in this claim."""
        outcome = judged.outcome
        if outcome.verdict is Verdict.SUCCESS:
            self._failures = 0
            self._since_growth += 1
            if self._since_growth >= self._window:
                self._since_growth = 0
                self._window = min(self.claimed.max_in_flight, self._window * 2)
            return
        if following.status == "pending":
            self._retries.append(following.delay)
        if outcome.own_fault:
            if outcome.verdict is Verdict.RETRY:
                self._stopped = True
                self._back_off(following.delay, judged.error)
            return
        self._stopped = True
        self._failures += 1
        self._window = 1
        self._learn_failure(delivery, judged, following, outcome)

    def _learn_failure(
        self, delivery: ClaimedDelivery, judged: Judged, following: Next, outcome: Outcome
    ) -> None:
        if outcome.retry_after is not None:
            self._back_off(outcome.retry_after, f"its answer asks for it: {judged.error}")
        quick = self._schedule.quick
        in_quick = following.status == "pending" and following.retries_used <= len(quick)
        if in_quick and (self._retrying is None or following.retries_used > self._retrying[0]):
            self._retrying = (following.retries_used, delivery.id)
        if self._failures > 1 and outcome.verdict is Verdict.RETRY:
            # Two failures in a row: back off, so that a dead receiver gets few requests.
            delay = following.delay if in_quick else quick[0] if quick else 1.0
            self._back_off(delay, judged.error)

    def _back_off(self, seconds: float, reason: str) -> None:
        seconds = min(seconds, self._max_backoff)
        if seconds > self._backoff:
            self._backoff, self._backoff_reason = seconds, reason
