"""The thread that takes wake-ups of one queue and claims for them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache
from uuid import UUID

import redis

from deliveries.claiming.claims import (
    Claim,
    claim,
    forget_bodies,
    release,
    release_unsendable,
)
from deliveries.claiming.memory import BodyMemory
from deliveries.progress import Progress
from deliveries.stage import Stage, rest
from deliveries.values import ClaimedLane
from deliveries.waking import wakeups
from deliveries.waking.queues import DELIVER, RECOVER
from subscriptions.database import (
    DATABASE_ERRORS,
    close_own_connection,
    use_own_connection,
    waited_too_long,
    worker_cursor,
)
from subscriptions.secrets import crypto

logger = logging.getLogger(__name__)

# The first and the longest wait for a row that another transaction has locked, in seconds; each
# wait is twice the last.
LOCKED_DELAY = 0.002
MAX_LOCKED_DELAY = 1.0
# How long a process that listens waits between two looks whether Redis is back, in seconds.
OUTAGE_PAUSE = 0.1
# How long a process that listens pauses between two looks at the due set when the next of its own
# items is due too soon to wait in Redis for, in seconds. Some lanes that somebody keeps locked make
# it 200 looks a second at most.
LOOK_PAUSE = 0.005
# How often a process that has no room looks whether it has, in seconds.
NO_ROOM_PAUSE = 0.02

# How many deliveries a claim is for, by what the last ones found: a subscription that comes now
# waits for the claim that is under way, and shares the next. Beside the backlog of the benchmark's
# *tenants*, by turns, the 99th percentile of the other tenant's latency is 52 ms with 250, 33 with
# 50 and 18 with 25, without the backlog 5; a delivery takes 212, 214 and 255 µs of processor time.
# *wide* is as fast with 50 as with 250, and the median of its calls of `publish` 73 ms and not 102.
DELIVERIES_AT_ONCE = 50
# What the last claims found counts as much as one for so many subscriptions.
REMEMBERED = 20

# How long the pause after a claim for a few subscriptions is, as a multiple of what the claim took.
PAUSE = 1.0

# A claim may wait for no disk: after a crash of PostgreSQL, what was in flight may be sent again.
_SETTINGS = {"synchronous_commit": "off"}

OnClaimed = Callable[[list[ClaimedLane], bool], None]


class Claimer:
    """Claims for the ids that it is given, and for those of the due set while it listens.

    `on_claimed(lanes, recovering)` gets what is to be sent; each of these lanes is counted in
    `progress` until its owner has released it. `places()`: how many requests can begin now; while
    none can, nothing is claimed, so that no lease is taken for a request that waits. Thread-safe.
    """

    def __init__(
        self,
        *,
        recovering: bool,
        memory: BodyMemory,
        progress: Progress,
        places: Callable[[], int],
        on_claimed: OnClaimed,
        stopping: threading.Event,
    ) -> None:
        self.recovering = recovering
        self._memory = memory
        self._progress = progress
        self._places = places
        self._on_claimed = on_claimed
        self._stopping = stopping
        self._listener = wakeups.Listener(RECOVER if recovering else DELIVER)
        self._listen_until = 0.0
        self._locked: dict[UUID, float] = {}
        # How many deliveries the last claims found for each subscription.
        self._found_each = 1.0
        self._stage = _ClaimStage(self)

    @property
    def listening(self) -> bool:
        """Whether the due set is being listened to."""
        return self._listen_until > 0

    def listen(self) -> None:
        """Listen to the due set, until no wake-up came for some seconds."""
        self._listen_until = time.monotonic() + wakeups.LISTEN_SECONDS
        self._stage.wake()

    def put(self, subscription_ids: Iterable[UUID]) -> None:
        """Claim for these subscriptions. Never waits."""
        for subscription_id in subscription_ids:
            self._progress.begin()
            self._stage.put(subscription_id)

    def again(self, subscription_ids: list[UUID]) -> None:
        """Claim for these again, after those that came before. Never waits for a claim."""
        if self.listening and not wakeups.redis_outage.lasting():
            # Every process that listens may take them.
            wakeups.wake(subscription_ids, recovering=self.recovering)
        else:
            self.put(subscription_ids)

    def close(self) -> None:
        """Claim for what was put before, then end the thread."""
        self._listen_until = 0.0
        self._stage.close()

    # The thread.

    def wait_for_room(self) -> int:
        """How many subscriptions the next claim may be for; waits until that is one at least."""
        while not self._stopping.is_set():
            places = self._places()
            if places > 0 and self._memory.wait_for_room(NO_ROOM_PAUSE):
                return min(self._memory.rows(places), int(DELIVERIES_AT_ONCE / self._found_each))
            if places <= 0:
                self._stopping.wait(NO_ROOM_PAUSE)
        return wakeups.TAKEN_AT_ONCE

    def take(self, limit: int, timeout: float | None) -> list[UUID]:
        """Ids from the due set; none if none came for a while, or Redis is unreachable."""
        if self._stopping.is_set():
            self._end_listening()
            return []
        if wakeups.redis_outage.lasting():
            if time.monotonic() > self._listen_until:
                self._listen_until = 0.0
            self._stopping.wait(OUTAGE_PAUSE)
            return []
        try:
            seconds = wakeups.WAIT_SECONDS if timeout is None else timeout
            began = time.monotonic()
            found = self._listener.take(limit, wait=seconds)
            wakeups.redis_outage.end()
            if not found and seconds < wakeups.SHORTEST_WAIT:
                self._stopping.wait(min(seconds, LOOK_PAUSE))
            if found:
                self._listen_until = time.monotonic() + wakeups.LISTEN_SECONDS
            elif began > self._listen_until:
                until, stopped = self._listen_until, self._listener.stop()
                # Unless a message came meanwhile: it says to listen on.
                if stopped and self._listen_until == until:
                    self._listen_until = 0.0
        except redis.RedisError as error:
            wakeups.redis_outage.begin(error)
            return []
        ids = [UUID(text) for text in found]
        for _ in ids:
            self._progress.begin()
        return ids

    def _end_listening(self) -> None:
        """This process stops: what it gives back must ring for others."""
        self._listen_until = 0.0
        with contextlib.suppress(redis.RedisError):
            self._listener.silence()

    def handle(self, subscription_ids: list[UUID]) -> None:
        """Claim for these, each once."""
        try:
            self._claim_safely(list(dict.fromkeys(subscription_ids)))
        finally:
            for _ in subscription_ids:
                self._progress.end()

    def _claim_safely(self, ids: list[UUID]) -> None:
        try:
            self._claim(ids)
        except DATABASE_ERRORS as error:
            if not waited_too_long(error):
                close_own_connection()
                logger.warning("nothing can be claimed now; the sweep will wake again: %s", error)
            elif len(ids) == 1:
                self._later(ids[0], MAX_LOCKED_DELAY)
            else:
                for subscription_id in ids:
                    self._claim_safely([subscription_id])
        except Exception:
            close_own_connection()
            if len(ids) == 1:
                logger.exception("the claim for subscription %s failed", ids[0])
                return
            logger.exception("a claim for %d subscriptions failed; claiming singly", len(ids))
            for subscription_id in ids:
                self._claim_safely([subscription_id])

    def _claim(self, ids: list[UUID]) -> None:
        if self._stopping.is_set():
            wakeups.wake(ids, recovering=self.recovering)
            return
        token = uuid.uuid4()
        found = claim(ids, self._memory, _decrypt, token=token, failing_too=self.recovering)
        each = sum(len(lane.deliveries) for lane in found.lanes) / len(ids)
        weight = len(ids) / (len(ids) + REMEMBERED)
        self._found_each = max(1.0, self._found_each + weight * (each - self._found_each))
        if found.lanes:
            for _ in found.lanes:
                self._progress.begin()
            self._on_claimed(found.lanes, self.recovering)
        for lane in found.unsendable:
            forget_bodies(lane.deliveries, self._memory)
        if found.again:
            self.again(found.again)
        if found.failing:
            wakeups.wake(found.failing, recovering=True)
        self._wait_for_locked(ids, found)
        for subscription_id in found.unreleased:
            self._release_later(subscription_id, token)
        for lane in found.unsendable:
            self._release_unsendable(lane)

    def _wait_for_locked(self, ids: list[UUID], found: Claim) -> None:
        """Lanes that another transaction has locked wait by themselves, longer each time."""
        for subscription_id in found.locked:
            delay = min(MAX_LOCKED_DELAY, 2 * self._locked.get(subscription_id, LOCKED_DELAY / 2))
            self._locked[subscription_id] = delay
            self._later(subscription_id, delay)
        if self._locked:
            for subscription_id in set(ids).difference(found.locked):
                self._locked.pop(subscription_id, None)

    def _later(self, subscription_id: UUID, seconds: float) -> None:
        self._progress.begin()
        self._stage.put_later(subscription_id, seconds)

    def _release_unsendable(self, lane: ClaimedLane) -> None:
        logger.error(
            "Nothing can be sent to subscription %s (%s); its deliveries wait: %s",
            lane.name,
            lane.subscription_id,
            lane.unsendable,
        )
        try:
            with worker_cursor() as cursor:
                release_unsendable(cursor, lane)
        except DATABASE_ERRORS as error:
            close_own_connection()
            logger.warning("the lane %s stays claimed for a lease: %s", lane.subscription_id, error)

    def _release_later(self, subscription_id: UUID, token: UUID) -> None:
        """Release an idle lane that another transaction had locked; in a thread, as it is rare."""
        timer = threading.Timer(0.5, self._release, (subscription_id, token))
        timer.daemon = True
        timer.start()

    def _release(self, subscription_id: UUID, token: UUID) -> None:
        use_own_connection(_SETTINGS)
        try:
            with worker_cursor() as cursor:
                again, locked = release(cursor, [subscription_id], token)
        except DATABASE_ERRORS as error:
            logger.warning("the lane %s stays claimed for a lease: %s", subscription_id, error)
            return
        finally:
            close_own_connection()
        if again:
            self.again(again)
        if locked:
            self._release_later(subscription_id, token)


class _ClaimStage(Stage[UUID]):
    """A stage whose items also come from Redis, while its claimer listens."""

    def __init__(self, owner: Claimer) -> None:
        super().__init__(
            "recover" if owner.recovering else "claim",
            owner.handle,
            max_batch=wakeups.TAKEN_AT_ONCE,
            pace=rest(PAUSE),
            setup=lambda: use_own_connection(_SETTINGS),
            teardown=close_own_connection,
        )
        self._owner = owner

    def _gather(self, batch: list[UUID], *, wait: bool) -> None:
        room = self._owner.wait_for_room()
        self._max_batch = max(1, min(room, wakeups.TAKEN_AT_ONCE))
        super()._gather(batch, wait=wait and not self._owner.listening)
        if not batch and wait and self._owner.listening:
            batch += self._owner.take(self._max_batch, self.seconds_to_next())


@lru_cache(maxsize=30_000)
def _decrypt(token: str) -> str:
    return crypto.decrypt(token).decode()
