"""Sending: lanes on their way through the stages of one worker process.

    wake-up → claim (stage) → requests (transport) → settle (stage) → claim again, or leave

All task threads of a process share one `Sender`. Its stages hold the only database connections
that are used for sending, one each, and none is held for a request that is in flight.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from uuid import UUID

from deliveries.claiming.bodies import EventBodies
from deliveries.claiming.claims import Claim, claim, is_lock_timeout
from deliveries.claiming.leaving import leave
from deliveries.sending.lane import Lane, LaneExit, Run
from deliveries.sending.stages import Pace, Stage
from deliveries.settling.settle import AWAY, Result, settle
from deliveries.transport import Transport, transport
from deliveries.waking import wakeups
from deliveries.waking.queues import DELIVER, RECOVER
from subscriptions import signals
from subscriptions.database import give_back_connection, worker_cursor
from subscriptions.secrets import crypto

logger = logging.getLogger(__name__)

# A retry or a rest that ends within this many seconds is announced by a message with a
# countdown; what is later is found by the sweep.
SOON = 60.0
# The database's clock and the worker's tick apart a little; a wake-up a moment late finds its row.
COUNTDOWN_SLACK = 0.05
# How long results are offered to a database that is away, in seconds: until their leases end,
# somebody else sends anew what could not be recorded.
SETTLE_PATIENCE = 30.0
# How long results wait that somebody's lock kept from being written, and lanes from being left.
LOCKED_DELAY = 0.5

# How many small claims and small settlements a process makes, each a commit: one that comes
# alone is made at once, beyond these they wait up to three milliseconds for each other.
PER_SECOND = 300.0
BURST = 10

# Tasks whose lanes are being served at the same time, in one process.
MOST_RUNS = 2000
# While there are no more than so many of them, a task with `patience` has no need to wait: its
# thread is there for the next message.
FEW_RUNS = 100


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
        self._claims: Stage[Wanted] = Stage(
            "claim",
            self._claim_batch,
            most=200,
            pace=Pace(PER_SECOND, BURST),
            own_connection=True,
        )
        # Nobody sets it: it is there to wait on.
        self._pause = threading.Event()
        self._signals: Stage[Callable[[], None]] = Stage("signals", _call_all)
        self._settlements: Stage[tuple[Result | LaneExit, ...]] = Stage(
            "settle", self._settle_batch, pace=Pace(PER_SECOND, BURST), own_connection=True
        )

    def serve(
        self,
        subscription_ids: Sequence[UUID],
        *,
        recovering: bool,
        patience: float | None = None,
    ) -> bool:
        """Send what is due for these subscriptions; returns once it is sent and settled.

        What is not done when the time slice ends is left to a new wake-up. With `patience`, in
        seconds, returns after that in any case, or at once while little is under way: what waits
        for a slow receiver goes on without a thread of its own. Returns whether all is done.
        """
        with self._quiet:
            # Memory has an end: beyond this many, a caller waits for others to finish, and
            # then leaves its work to the sweep.
            if not self._quiet.wait_for(lambda: self._runs < MOST_RUNS or self.stopping, patience):
                return False
            self._runs += 1
            if patience is not None and self._runs <= FEW_RUNS:
                patience = 0
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
        self._signals.close()

    def settle(self, *items: Result | LaneExit, urgent: bool = False) -> None:
        """Write these down, in one transaction; `urgent` if somebody waits for that."""
        self._settlements.put(items, urgent=urgent)

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
        except AWAY as error:
            if is_lock_timeout(error):
                self._claim_singly(runs, recovering)
            else:
                give_back_connection()
                logger.warning("nothing can be claimed now; the sweep will wake again: %s", error)
        except Exception:
            give_back_connection()
            logger.exception("a claim for %d subscriptions failed; claiming singly", len(runs))
            self._claim_singly(runs, recovering)
        finally:
            for one in group:
                one.run.end()

    def _claim_singly(self, runs: dict[UUID, Run], recovering: bool) -> None:
        for subscription_id, run in runs.items():
            try:
                self._claim({subscription_id: run}, recovering)
            except AWAY as error:
                if not is_lock_timeout(error):
                    give_back_connection()
                logger.warning("no claim for subscription %s now: %s", subscription_id, error)
            except Exception:
                give_back_connection()
                logger.exception("the claim for subscription %s failed", subscription_id)

    def _claim(self, runs: dict[UUID, Run], recovering: bool) -> None:
        # Before anything else: who publishes later must wake anew.
        wakeups.lower_flags(list(runs), RECOVER if recovering else DELIVER)
        if self.stopping:
            wakeups.wake(runs, recovering=recovering, one_by_one=False)
            return
        token = uuid.uuid4()
        found = claim(runs, self._bodies, _decrypt, token=token, failing_too=recovering)
        for claimed in found.lanes:
            run = runs[claimed.subscription_id]
            run.begin()
            Lane(self, run, claimed, token).start()
        for subscription_id in found.again:
            runs[subscription_id].begin()
            self._claims.put(Wanted(runs[subscription_id], [subscription_id]), urgent=True)
        if found.held:
            self._leave_later(found.held, token, recovering)
        self._pass_on(found)

    def _leave_later(self, subscription_ids: list[UUID], token: UUID, recovering: bool) -> None:
        _once_unlocked(self._leave, subscription_ids, token, recovering)

    def _leave(self, subscription_ids: list[UUID], token: UUID, recovering: bool) -> None:
        try:
            with worker_cursor() as cursor:
                again, held = leave(cursor, subscription_ids, token)
        except AWAY as error:
            logger.warning("%d lanes stay claimed for a lease: %s", len(subscription_ids), error)
            return
        finally:
            give_back_connection()
        if again:
            wakeups.wake(again, recovering=recovering, one_by_one=False)
        if held:
            self._leave_later(held, token, recovering)

    def _pass_on(self, found: Claim) -> None:
        if found.failing:
            wakeups.wake(found.failing, recovering=True, patience=0)
        for subscription_id, rest in found.resting.items():
            # Who put the lane to rest ordered a wake-up; this one only came a little early.
            if rest < 1:
                wakeups.wake_later([subscription_id], rest + COUNTDOWN_SLACK)

    # Settling

    def _settle_batch(self, together: list[tuple[Result | LaneExit, ...]]) -> None:
        items = [one for group in together for one in group]
        signals.announcer.set(self._signals.put)
        # A probe may enable its subscription, which locks more rows than a result: each by
        # itself, so that locks are taken in one order.
        groups = _by_subscription([one for one in items if one.lane.probe])
        if others := [one for one in items if not one.lane.probe]:
            groups.append(others)
        for group in groups:
            self._settle_group(group)

    def _settle_group(self, items: list[Result | LaneExit]) -> None:
        """Offer the items to the database until it takes them, or their leases are over."""
        now = time.monotonic()
        for one in items:
            one.give_up_at = one.give_up_at or now + SETTLE_PATIENCE
        delay = 0.05
        repeated = False
        while True:
            try:
                self._settle(items, repeated=repeated)
                return
            except AWAY as error:
                if is_lock_timeout(error):
                    self._set_aside(items)
                    return
                give_back_connection()
                if time.monotonic() > min(one.give_up_at for one in items):
                    logger.error("%d results could not be recorded: %s", len(items), error)
                    self._abandon(items)
                    return
                self._pause.wait(delay)
                delay = min(2.0, delay * 2)
                repeated = True
            except Exception:
                give_back_connection()
                logger.exception("%d results could not be recorded", len(items))
                self._abandon(items)
                return

    def _settle(self, items: list[Result | LaneExit], *, repeated: bool) -> None:
        results = [one for one in items if isinstance(one, Result)]
        exits = [one for one in items if isinstance(one, LaneExit)]
        settled = settle(results, [one.end for one in exits])
        later: dict[bool, list[UUID]] = {False: [], True: []}
        for one in exits:
            subscription_id = one.lane.subscription_id
            # If it was written before, and only the answer was lost, so was who is to be woken.
            wake_again = repeated or subscription_id in settled.wake_again
            if subscription_id not in settled.tripped and not self._goes_on(
                one, wake_again=wake_again
            ):
                later[one.end.failures > 0].append(subscription_id)
        for recovering, ids in later.items():
            if ids:
                wakeups.wake(ids, recovering=recovering, patience=0, one_by_one=False)
        for one in exits:
            one.run.end()
        for result in results:
            result.settled(result.delivery.id not in settled.given_up)

    def _set_aside(self, items: list[Result | LaneExit]) -> None:
        """Somebody holds a row of one of these subscriptions: settle the others, that one later."""
        groups = _by_subscription(items)
        if len(groups) > 1:
            for group in groups:
                self._settle_group(group)
        elif time.monotonic() > min(one.give_up_at for one in items):
            logger.error("%d results could not be recorded: their rows are locked", len(items))
            self._abandon(items)
        else:
            _once_unlocked(self.settle, *items)

    def _abandon(self, items: list[Result | LaneExit]) -> None:
        """Let the leases run out: somebody else sends again what could not be recorded."""
        for one in items:
            if isinstance(one, LaneExit):
                one.run.end()
            else:
                one.settled(False)

    def _goes_on(self, left: LaneExit, *, wake_again: bool) -> bool:
        """After a lane was left: whether it is done, or served again; else it needs a wake-up."""
        end = left.end
        lane = end.lane
        for seconds in left.wake_in:
            if seconds <= SOON:
                wakeups.wake_later([lane.subscription_id], seconds + COUNTDOWN_SLACK)
        if end.rest > 0 or not (wake_again or end.unsent or lane.more):
            return True
        failing = end.failures > 0
        same_queue = left.run.recovering or not failing
        if same_queue and not self.stopping and time.monotonic() < left.run.deadline:
            left.run.begin()
            self._claims.put(Wanted(left.run, [lane.subscription_id]), urgent=True)
            return True
        return False


def _by_subscription(items: list[Result | LaneExit]) -> list[list[Result | LaneExit]]:
    groups: dict[UUID, list[Result | LaneExit]] = {}
    for one in items:
        groups.setdefault(one.lane.subscription_id, []).append(one)
    return list(groups.values())


def _once_unlocked(call: Callable[..., None], *arguments: Any) -> None:
    """Make the call when whoever holds the lock has probably let go, in a thread of its own."""
    timer = threading.Timer(LOCKED_DELAY, call, arguments)
    timer.daemon = True
    timer.start()


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:
            logger.exception("a signal could not be sent")
        finally:
            # One that was lost meanwhile would be of no use to the next.
            give_back_connection()


@lru_cache(maxsize=30_000)
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
