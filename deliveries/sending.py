"""Sending: lanes on their way through the stages of one worker process.

    wake-up → claim (stage) → requests (transport) → settle (stage) → claim again, or leave

All task threads of a process share one `Sender`. Its stages hold the only database connections
that are used for sending, one each, and none is held for a request that is in flight.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

from django.db import DatabaseError, InterfaceError, OperationalError, connection

from deliveries import wakeups
from deliveries.bodies import EventBodies
from deliveries.claims import Claim, ClaimedDelivery, ClaimedLane, claim
from deliveries.policy import Next, Outcome, Schedule, Verdict, decide
from deliveries.queues import DELIVER, RECOVER
from deliveries.requests import Judged, broken, judge_response, prepare, unsendable
from deliveries.settling import LaneEnd, Result, settle
from deliveries.stages import Stage
from deliveries.transport import Result as Answer
from deliveries.transport import Transport, transport
from subscriptions import crypto
from subscriptions.conf import conf

logger = logging.getLogger(__name__)

# A retry or a rest that ends within this many seconds is announced by a message with a
# countdown; what is later is found by the sweep.
SOON = 60.0
# The database's clock and the worker's tick apart a little; a wake-up a moment late finds its row.
COUNTDOWN_SLACK = 0.05
# How long results are offered to a database that is away, in seconds: until their leases end,
# somebody else sends anew what could not be recorded.
SETTLE_PATIENCE = 30.0

# How long after its claim a lane may begin requests, in seconds: then it looks anew whether its
# subscription is still enabled, and still at the same address with the same secrets.
FRESH = 1.0
# Tasks whose lanes are being served at the same time, in one process.
MOST_RUNS = 2000


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
class Wanted:
    """Subscriptions to claim for a run."""

    run: Run
    subscription_ids: Sequence[UUID]


class Sender:
    """What one worker process sends with. Thread-safe."""

    def __init__(self, sends_with: Transport | None = None) -> None:
        self.transport = transport() if sends_with is None else sends_with
        self.stopping = False
        self._runs = 0
        self._quiet = threading.Condition()
        self._bodies = EventBodies()
        self._claims: Stage[Wanted] = Stage("claim", self._claim_batch, most=200)
        self._settlements: Stage[Result | LaneExit] = Stage("settle", self._settle_batch)

    def serve(
        self,
        subscription_ids: Sequence[UUID],
        *,
        recovering: bool,
        patience: float | None = None,
    ) -> bool:
        """Send what is due for these subscriptions; returns once it is sent and settled.

        What is not done when the time slice ends is left to a new wake-up. With `patience`, in
        seconds, returns after that in any case: what waits for a slow receiver goes on without
        a thread of its own. Returns whether all is done.
        """
        with self._quiet:
            # Memory has an end: beyond this many, a caller waits for others to finish.
            self._quiet.wait_for(lambda: self._runs < MOST_RUNS or self.stopping)
            self._runs += 1
        run = Run(recovering=recovering, on_finish=self._run_finished)
        self._claims.put(Wanted(run, subscription_ids))
        return run.wait(patience)

    def _run_finished(self) -> None:
        with self._quiet:
            self._runs -= 1
            self._quiet.notify_all()

    def stop(self) -> None:
        """Begin no request any more; `serve` returns as soon as those in flight are settled."""
        self.stopping = True
        with self._quiet:
            self._quiet.notify_all()

    def drain(self, timeout: float) -> bool:
        """`stop`, and wait until all that was in flight is settled; whether that was in time."""
        self.stop()
        with self._quiet:
            return self._quiet.wait_for(lambda: self._runs == 0, timeout)

    def close(self) -> None:
        """Stop, and end the stages once they have done what they have. Not to be used after."""
        self.stop()
        self._claims.close()
        self._settlements.close()

    def settle(self, item: Result | LaneExit) -> None:
        self._settlements.put(item)

    # Claiming

    def _claim_batch(self, wanted: list[Wanted]) -> None:
        for recovering in (False, True):
            group = [one for one in wanted if one.run.recovering is recovering]
            if group:
                self._claim_group(group, recovering)

    def _claim_group(self, group: list[Wanted], recovering: bool) -> None:
        runs: dict[UUID, Run] = {}
        for one in group:
            for subscription_id in one.subscription_ids:
                runs.setdefault(subscription_id, one.run)
        try:
            self._claim(runs, recovering)
        except (OperationalError, InterfaceError) as error:
            connection.close()
            logger.warning("nothing can be claimed, the sweep will wake again: %s", error)
        except Exception:
            connection.close()
            logger.exception("a claim for %d subscriptions failed; claiming singly", len(runs))
            self._claim_singly(runs, recovering)
        finally:
            for one in group:
                one.run.end()

    def _claim_singly(self, runs: dict[UUID, Run], recovering: bool) -> None:
        for subscription_id, run in runs.items():
            try:
                self._claim({subscription_id: run}, recovering)
            except Exception:
                connection.close()
                logger.exception("the claim for subscription %s failed", subscription_id)

    def _claim(self, runs: dict[UUID, Run], recovering: bool) -> None:
        if self.stopping:
            wakeups.wake(runs, recovering=recovering, one_by_one=False)
            return
        wakeups.lower_flags(list(runs), RECOVER if recovering else DELIVER)
        token = uuid.uuid4()
        found = claim(runs, self._bodies, _decrypt, token=token, failing_too=recovering)
        for claimed in found.lanes:
            run = runs[claimed.subscription_id]
            run.begin()
            Lane(self, run, claimed, token).start()
        self._pass_on(found)

    def _pass_on(self, found: Claim) -> None:
        if found.failing:
            wakeups.wake(found.failing, recovering=True)
        for subscription_id, rest in found.resting.items():
            # Who put the lane to rest ordered a wake-up; this one only came a little early.
            if rest < 1:
                wakeups.wake_later([subscription_id], rest + COUNTDOWN_SLACK)

    # Settling

    def _settle_batch(self, items: list[Result | LaneExit]) -> None:
        results = [one for one in items if isinstance(one, Result)]
        written = False
        exits = [one for one in items if isinstance(one, LaneExit)]
        give_up = time.monotonic() + SETTLE_PATIENCE
        pause = threading.Event()
        delay = 0.05
        try:
            while True:
                try:
                    settled = settle(results, [one.end for one in exits])
                    written = True
                    break
                except (OperationalError, InterfaceError) as error:
                    connection.close()
                    if time.monotonic() > give_up:
                        logger.error("%d results could not be recorded: %s", len(results), error)
                        return
                    pause.wait(delay)
                    delay = min(2.0, delay * 2)
            for one in exits:
                subscription_id = one.end.lane.subscription_id
                self._go_on(
                    one,
                    wake_again=subscription_id in settled.wake_again,
                    tripped=subscription_id in settled.tripped,
                )
        except DatabaseError:
            connection.close()
            logger.exception("%d results could not be recorded", len(results))
        finally:
            for result in results:
                result.settled(written)
            for one in exits:
                one.run.end()

    def _go_on(self, left: LaneExit, *, wake_again: bool, tripped: bool) -> None:
        """After a lane was left: serve it again now, have it served later, or be done."""
        end = left.end
        lane = end.lane
        if tripped:
            return
        for seconds in left.wake_in:
            if seconds <= SOON:
                wakeups.wake_later([lane.subscription_id], seconds + COUNTDOWN_SLACK)
        if end.rest > 0 or not (wake_again or end.unsent or lane.more):
            return
        failing = end.failures > 0
        same_queue = left.run.recovering or not failing
        if same_queue and not self.stopping and time.monotonic() < left.run.deadline:
            left.run.begin()
            self._claims.put(Wanted(left.run, [lane.subscription_id]))
        else:
            wakeups.wake([lane.subscription_id], recovering=failing)


@dataclass(slots=True)
class LaneExit:
    """A lane that is left. `wake_in`: seconds until it is worth looking at again."""

    run: Run
    end: LaneEnd
    wake_in: list[float]


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
        now = time.monotonic()
        while True:
            with self._lock:
                if self._sender.stopping or now > self._run.deadline:
                    self._stopped = True
                if self._stopped or not self._queue or self._in_flight >= self._window:
                    leave = self._in_flight == 0 and (self._stopped or not self._queue)
                    if leave:
                        self._in_flight = -1  # nobody leaves twice
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
            self._leave()

    def _send(self, delivery: ClaimedDelivery) -> None:
        started = time.time()
        reason = self._claimed.unsendable or delivery.unsendable
        try:
            if reason:
                self._answered(delivery, started, unsendable(reason))
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
            if not written or time.monotonic() > self._fresh_until:
                self._stopped = True
        self._advance()

    def _answered(self, delivery: ClaimedDelivery, started: float, judged: Judged) -> None:
        spread = random.random()  # noqa: S311 - spreads retries, guards nothing
        following = decide(judged.outcome, delivery.retries_used, self._schedule, spread)
        with self._lock:
            self._learn(delivery, judged.outcome, following)
        self._sender.settle(
            Result(
                lane=self._claimed,
                delivery=delivery,
                next=following,
                verdict=judged.outcome.verdict,
                outcome=judged.code,
                status_code=judged.status_code,
                error=judged.error,
                response_body=judged.response_body,
                remote_address=judged.remote_address,
                started_at=started,
                duration_ms=judged.duration_ms,
                settled=self._settled,
            )
        )

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
        if outcome.own_fault:
            if outcome.verdict is Verdict.RETRY:
                self._stopped = True
                self._rest = max(self._rest, following.delay)
            return
        self._stopped = True
        self._claimed.well = False
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

    def _leave(self) -> None:
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
        self._sender.settle(LaneExit(self._run, end, wake_in + sorted(later)[:1]))


@lru_cache(maxsize=10_000)
def _decrypt(token: str) -> str:
    return crypto.decrypt(token).decode()


_senders: dict[int, Sender] = {}
_senders_lock = threading.Lock()


def sender() -> Sender:
    """This process's sender. A forked child makes its own: threads do not survive a fork."""
    process = os.getpid()
    with _senders_lock:
        if process not in _senders:
            _senders.clear()
            _senders[process] = Sender()
        return _senders[process]
