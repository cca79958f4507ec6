"""The sender of a worker process: the way of a delivery from its claim to its settlement.

    wake-up → claim (a thread for each queue) → requests (the transport's thread)
            → settle (a thread) → released, or claimed again

`Sender` owns the lanes. All that happens to a lane happens on the transport's thread, one thing
after the other; the other threads hand values over and touch no lane. The threads that claim and
settle hold the only database connections that are used for sending, one each, and none is held
for a request that is in flight.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar
from uuid import UUID

from deliveries import tracing
from deliveries.claiming.claimer import Claimer
from deliveries.claiming.memory import BodyMemory
from deliveries.judging.policy import NO_EVENT, Schedule
from deliveries.judging.response import Judged, broken, judge_response, unsendable
from deliveries.monitoring.counts import counts
from deliveries.monitoring.lines import log_attempts
from deliveries.progress import Progress
from deliveries.sending.counting import Counting
from deliveries.sending.lane import OpenLane
from deliveries.sending.request import request_of
from deliveries.settling.settle import Settled, settle, unsettled
from deliveries.stage import FairStage, Stage, call_all, rest
from deliveries.transport import Exchange, NotStarted, Transport, transport
from deliveries.turns import Turns
from deliveries.values import ClaimedDelivery, ClaimedLane, LaneEnd, Result
from deliveries.waking import wakeups
from subscriptions import signals
from subscriptions.conf import conf
from subscriptions.database import (
    DATABASE_ERRORS,
    close_own_connection,
    use_own_connection,
    waited_too_long,
)

logger = logging.getLogger(__name__)

# A retry or a backoff that ends within this many seconds is announced by this process; what is
# later is found by the sweep, as is all of it if the process dies.
SOON = 60.0
# The clocks of the database and the worker differ a little; a wake-up that is late finds its row.
WAKE_SLACK = 0.05
# How long results are offered to an unreachable database, in seconds: after that their leases are
# over, and others send again what could not be recorded.
SETTLE_TIMEOUT = 30.0
# How much of a lease is left, in seconds, when the last request on it has ended.
SETTLE_TIME = 5.0
# The first and the longest wait for a row that another transaction has locked, in seconds; each
# wait is twice the last.
LOCKED_DELAY = 0.005
MAX_LOCKED_DELAY = 2.0
# How long the pause after a settlement of a few results is, as a multiple of what it took.
PAUSE = 2.0
# How many results one settlement writes at most: a lane that has one more delivery waits for the
# settlement of its last. In the benchmark's *tenants* the quiet tenant's p99 was 228 ms with 2,000
# at once and 78 with 300, and the flood took no longer.
SETTLED_AT_ONCE = 300
# For how long the transport's thread goes on with the lanes of one batch before it looks what else
# has come, in seconds.
SLICE = 0.001

_Item = TypeVar("_Item")


@dataclass(slots=True)
class _Settlement:
    """What the settle stage writes of a lane: a result, its end, or both."""

    lane: OpenLane
    result: Result | None
    end: LaneEnd | None
    give_up_at: float = 0.0
    delay: float = LOCKED_DELAY


class Sender:
    """What one worker process sends with. Thread-safe."""

    def __init__(self, sends_with: Transport | None = None) -> None:
        self.transport = transport() if sends_with is None else sends_with
        self._stopping = threading.Event()
        self._progress = Progress()
        # Receivers that fail leave three quarters of it to the others.
        limit = conf().body_memory
        self._memories = {False: BodyMemory(limit * 3 // 4), True: BodyMemory(limit // 4)}
        self._claimers = {
            recovering: Claimer(
                recovering=recovering,
                memory=self._memories[recovering],
                progress=self._progress,
                places=partial(self.transport.capacity, recovering),
                on_claimed=self._on_claimed,
                stopping=self._stopping,
            )
            for recovering in (False, True)
        }
        self._settlements: FairStage[_Settlement] = FairStage(
            "settle",
            self._settle_batch,
            owner=lambda item: item.lane.claimed.tenant,
            max_batch=SETTLED_AT_ONCE,
            pace=rest(PAUSE),
            setup=self._begin_settling,
            teardown=close_own_connection,
        )
        self._signals: Stage[Callable[[], None]] = Stage("signals", call_all)
        self._wakes: Stage[UUID] = Stage("wake later", partial(wakeups.wake, recovering=True))
        self._counting = Counting(self._stopping)

    def take(self, subscription_ids: Iterable[UUID], *, recovering: bool) -> None:
        """Send what is due for these subscriptions, and listen for more. Returns at once."""
        if not self._stopping.is_set():
            self._claimers[recovering].put(subscription_ids)
            self._claimers[recovering].listen()

    def serve(self, subscription_ids: Sequence[UUID], *, recovering: bool) -> None:
        """Send what is due for these subscriptions; returns once it is sent and settled."""
        self._claimers[recovering].put(subscription_ids)
        self._progress.wait()

    def stop(self) -> None:
        """Begin no request any more. What is claimed and not sent is given back."""
        self._stopping.set()

    def drain(self, timeout: float) -> bool:
        """`stop`, and wait until all that was in flight is settled; whether that was in time."""
        self.stop()
        self._wakes.close()
        in_time = self._progress.wait(timeout)
        self._counting.close()
        return in_time

    def close(self) -> None:
        """Stop, and end the threads once they have done what they have. Not to be used after."""
        self.stop()
        self._wakes.close()
        for claimer in self._claimers.values():
            claimer.close()
        self._progress.wait(conf().lease)
        self._settlements.close()
        self._signals.close()
        self._counting.close()

    # On the transport's thread: everything that happens to a lane.

    def _on_claimed(self, lanes: list[ClaimedLane], recovering: bool) -> None:
        turns: Turns[ClaimedLane] = Turns()
        for lane in lanes:
            turns.put(lane.tenant, lane)
        begin = partial(self._begin, recovering=recovering)
        self.transport.call_soon(partial(self._for_a_while, turns, begin))

    def _begin(self, claimed: ClaimedLane, *, recovering: bool) -> None:
        values = conf()
        lane = OpenLane(
            claimed,
            Schedule(values.quick_retries, values.slow_retries, values.retry_jitter),
            recovering=recovering,
            begin_until=time.monotonic() + values.time_slice,
            # A request that began later could end after the lease, when others send again.
            start_by=claimed.expires_at - values.request_timeout - SETTLE_TIME,
            max_backoff=values.max_backoff,
        )
        self._advance(lane)

    def _advance(self, lane: OpenLane) -> None:
        """Send as much as the window allows; release the lane once it is over."""
        if self._stopping.is_set():
            lane.stop()
        while self._may_send(lane) and (delivery := lane.next_delivery()) is not None:
            self._send(lane, delivery)
        if (end := lane.end()) is not None:
            self._release(lane, end, None)

    def _may_send(self, lane: OpenLane) -> bool:
        """Once half of the places are taken, each lane has one request in flight: many receivers
        that become silent at the same time leave places for the others."""
        return not lane.in_flight or not self.transport.is_crowded(lane.recovering)

    def _send(self, lane: OpenLane, delivery: ClaimedDelivery) -> None:
        try:
            if delivery.unsendable:
                self._answered(lane, delivery, unsendable(NO_EVENT, delivery.unsendable))
                return
            self.transport.submit(
                request_of(lane.claimed, delivery),
                partial(self._on_answer, lane, delivery),
                start_by=lane.start_by,
                recovering=lane.recovering,
                owner=lane.claimed.tenant,
            )
        except Exception as error:
            logger.exception("delivery %d could not be sent", delivery.id)
            self._answered(lane, delivery, broken(error))

    def _on_answer(self, lane: OpenLane, delivery: ClaimedDelivery, answer: Exchange) -> None:
        if isinstance(answer.error, NotStarted):
            lane.not_sent(delivery)
            if (end := lane.end()) is not None:
                self._release(lane, end, None)
            return
        try:
            judged = judge_response(answer)
        except Exception as error:
            logger.exception("the answer to delivery %d could not be read", delivery.id)
            judged = broken(error)
        self._answered(lane, delivery, judged)

    def _answered(self, lane: OpenLane, delivery: ClaimedDelivery, judged: Judged) -> None:
        self._forget_body(lane, delivery)
        started_at = time.time() - judged.duration_ms / 1000
        spread = random.random()  # noqa: S311 - spreads retries, guards nothing
        result = lane.answered(delivery, judged, started_at, spread)
        # The last result takes the end of its lane with it, in one transaction.
        end = lane.end(last=True)
        if end is None:
            # Nothing more is sent for the lane until the result is written.
            self._settlements.put(_Settlement(lane, result, None), urgent=lane.is_blocked())
        else:
            self._release(lane, end, result)

    def _release(self, lane: OpenLane, end: LaneEnd, result: Result | None) -> None:
        for delivery in end.unsent:
            self._forget_body(lane, delivery)
        more = bool(end.unsent) or lane.claimed.more
        self._settlements.put(_Settlement(lane, result, end), urgent=more)

    def _forget_body(self, lane: OpenLane, delivery: ClaimedDelivery) -> None:
        payload, delivery.payload = delivery.payload, None
        if payload is not None:
            self._memories[lane.recovering].release(payload)

    def _for_a_while(self, items: Turns[_Item], act: Callable[[_Item], None]) -> None:
        """Act on the first of these; on the others after what else has come meanwhile."""
        until = time.monotonic() + SLICE
        try:
            act(items.pop())
            while items and time.monotonic() < until:
                act(items.pop())
        finally:
            if items:
                self.transport.call_soon(partial(self._for_a_while, items, act))

    def _after_settling(self, settled: tuple[OpenLane, list[bool]]) -> None:
        """Each result of this lane was written, or not."""
        lane, results = settled
        now = time.monotonic()
        for written in results:
            lane.settled(written=written, now=now)
        self._advance(lane)

    # On the settle stage's thread.

    def _begin_settling(self) -> None:
        use_own_connection()
        # A receiver of a signal that writes an e-mail must not hold up all results, nor use
        # the connection that they are written with.
        signals.announcer.set(self._signals.put)

    def _settle_batch(self, batch: list[_Settlement]) -> None:
        """Offer the batch to the database until it takes it, or the leases are over."""
        now = time.monotonic()
        for item in batch:
            item.give_up_at = item.give_up_at or now + SETTLE_TIMEOUT
        delay = 0.05
        repeated = False
        while True:
            try:
                settled = settle(
                    [item.result for item in batch if item.result is not None],
                    [item.end for item in batch if item.end is not None],
                    repeated=repeated,
                    uncounted={
                        item.lane.claimed.subscription_id
                        for item in batch
                        if item.delay >= MAX_LOCKED_DELAY
                    },
                )
            except DATABASE_ERRORS as error:
                if waited_too_long(error):
                    self._settle_apart(batch)
                    return
                close_own_connection()
                if time.monotonic() > min(item.give_up_at for item in batch):
                    logger.error("%d results could not be recorded: %s", len(batch), error)
                    self._abandon(batch)
                    return
                time.sleep(delay)
                delay = min(2.0, delay * 2)
                repeated = True
            except Exception:
                close_own_connection()
                logger.exception("%d results could not be recorded", len(batch))
                self._abandon(batch)
                return
            else:
                self._settled(batch, settled, repeated=repeated)
                return

    def _settle_apart(self, batch: list[_Settlement]) -> None:
        """Something of this batch waits for a lock: each subscription by itself, then later."""
        groups: dict[UUID, list[_Settlement]] = {}
        for item in batch:
            groups.setdefault(item.lane.claimed.subscription_id, []).append(item)
        if len(groups) > 1:
            for group in groups.values():
                self._settle_batch(group)
            return
        for item in batch:
            if time.monotonic() > item.give_up_at:
                self._abandon([item])
            else:
                self._settlements.put_later(item, item.delay)
                item.delay = min(MAX_LOCKED_DELAY, 2 * item.delay)

    def _settled(self, batch: list[_Settlement], settled: Settled, *, repeated: bool) -> None:
        counts.add_results(settled.written)
        self._counting.share()
        log_attempts(settled.written, successes=conf().log_successes)
        tracing.record_attempts(settled.written)
        if settled.locked_results or settled.locked_ends:
            batch = self._set_aside(batch, settled)
        ends = [(item.lane, item.end) for item in batch if item.end is not None]
        self._advance_soon(
            (item.lane, item.result.delivery.id not in settled.given_up)
            for item in batch
            if item.result is not None and item.end is None
        )
        try:
            self._go_on(ends, settled, repeated=repeated)
        finally:
            for _ in ends:
                self._progress.end()

    def _set_aside(self, batch: list[_Settlement], settled: Settled) -> list[_Settlement]:
        """What another transaction has locked waits by itself, longer each time.

        Returns the others.
        """
        done = []
        now = time.monotonic()
        for item in batch:
            results = [] if item.result is None else [item.result]
            ends = [] if item.end is None else [item.end]
            left_results, left_ends = unsettled(settled, results, ends)
            if not left_results and not left_ends:
                done.append(item)
                continue
            if now > item.give_up_at:
                logger.error(
                    "a result of subscription %s could not be recorded: its rows are locked",
                    item.lane.claimed.subscription_id,
                )
                self._abandon([item])
                continue
            if not left_results:
                item.result = None
            self._settlements.put_later(item, item.delay)
            item.delay = min(MAX_LOCKED_DELAY, 2 * item.delay)
        return done

    def _advance_soon(self, settled: Iterable[tuple[OpenLane, bool]]) -> None:
        """Results were written or given up: more may be sent for their lanes."""
        lanes: dict[OpenLane, list[bool]] = {}
        for lane, written in settled:
            lanes.setdefault(lane, []).append(written)
        if lanes:
            turns: Turns[tuple[OpenLane, list[bool]]] = Turns()
            for lane, results in lanes.items():
                turns.put(lane.claimed.tenant, (lane, results))
            self.transport.call_soon(partial(self._for_a_while, turns, self._after_settling))

    def _abandon(self, batch: list[_Settlement]) -> None:
        """Let the leases run out: others send again what could not be recorded."""
        self._advance_soon((item.lane, False) for item in batch if item.end is None)
        for item in batch:
            if item.end is not None:
                self._progress.end()

    def _go_on(
        self, ends: Sequence[tuple[OpenLane, LaneEnd]], settled: Settled, *, repeated: bool
    ) -> None:
        """Released lanes that have more to send are claimed again, each after all others.

        `repeated`: the ends may have been written before, and the answer lost with the wake-ups.
        """
        again: dict[bool, list[UUID]] = {False: [], True: []}
        to_recover: list[UUID] = []
        for lane, end in ends:
            subscription_id = end.lane.subscription_id
            if subscription_id in settled.tripped:
                continue
            for seconds in end.wake_in:
                if seconds <= SOON:
                    self._wake_later(subscription_id, seconds + WAKE_SLACK)
            # A wake-up that came meanwhile may be of a reset, after which the backoff is over.
            more = repeated or subscription_id in settled.wake_again
            if not more and (end.backoff or not (end.unsent or end.lane.more)):
                continue
            if end.failures and not lane.recovering:
                to_recover.append(subscription_id)
            else:
                again[lane.recovering].append(subscription_id)
        if to_recover:
            wakeups.wake(to_recover, recovering=True)
        for recovering, ids in again.items():
            if not ids:
                continue
            if self._stopping.is_set():
                wakeups.wake(ids, recovering=recovering)
            else:
                self._claimers[recovering].again(ids)

    def _wake_later(self, subscription_id: UUID, seconds: float) -> None:
        self._wakes.put_later(subscription_id, seconds)


_senders: dict[int, Sender] = {}
# Reentrant, because a signal's handler may ask for the sender while its thread is here.
_senders_lock = threading.RLock()


def sender() -> Sender:
    """This process's sender."""
    process = os.getpid()
    with _senders_lock:
        if process not in _senders:
            _senders.clear()
            _senders[process] = Sender()
        return _senders[process]
