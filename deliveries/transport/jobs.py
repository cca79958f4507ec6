"""Requests on their way through the transport, and the places there are for them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

import requests

from deliveries.transport.exchange import Exchange
from deliveries.transport.names import Name
from deliveries.turns import Turns
from subscriptions.destinations import Destination


class Job:
    """One submitted request. `timeout` and times are in seconds (monotonic clock)."""

    __slots__ = (
        "budget",
        "deadline",
        "destination",
        "name",
        "on_done",
        "owner",
        "request",
        "start_by",
        "started",
        "timeout",
    )

    # Set when it is handed over, when it is started, and while it waits for its host name.
    budget: Budget
    started: float
    deadline: float
    name: Name

    def __init__(
        self,
        request: requests.PreparedRequest,
        on_done: Callable[[Exchange], None],
        timeout: float,
        start_by: float | None,
        owner: str,
    ) -> None:
        self.request = request
        self.on_done = on_done
        self.timeout = timeout
        self.start_by = start_by
        self.owner = owner
        self.destination: Destination | None = None


class Budget:
    """The places for requests of one kind, and those that wait for one, the owners by turns.

    `submitted` is counted by the threads that submit, under the driver's lock; all else is the
    driver's own.
    """

    __slots__ = ("_numbers", "_start_bys", "_waiting", "ended", "in_flight", "places", "submitted")

    def __init__(self, places: int) -> None:
        self.places = places
        self.in_flight = 0
        self.submitted = 0
        self.ended = 0
        self._waiting: Turns[Job] = Turns()
        self._start_bys: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()

    @property
    def capacity(self) -> int:
        return self.places - (self.submitted - self.ended)

    @property
    def has_next(self) -> bool:
        """Whether a job waits and there is a place for it."""
        return bool(self._waiting) and self.in_flight < self.places

    def wait(self, job: Job) -> None:
        self._waiting.put(job.owner, job)
        if job.start_by is not None:
            heapq.heappush(self._start_bys, (job.start_by, next(self._numbers), job))

    def next(self) -> Job:
        """The job that has waited longest of the owner whose turn it is; it waits no longer."""
        return self._waiting.pop()

    def next_start_by(self) -> float | None:
        """The earliest `start_by` of those that wait."""
        while self._start_bys and not self._waits(self._start_bys[0][2]):
            heapq.heappop(self._start_bys)
        return self._start_bys[0][0] if self._start_bys else None

    def _waits(self, job: Job) -> bool:
        return self._waiting.has(job.owner, job)

    def late(self, now: float) -> list[Job]:
        """The jobs whose `start_by` is over; they wait no longer."""
        late = []
        while (start_by := self.next_start_by()) is not None and start_by <= now:
            job = heapq.heappop(self._start_bys)[2]
            self._waiting.remove(job.owner, job)
            late.append(job)
        return late

    def all_waiting(self) -> list[Job]:
        return list(self._waiting)
