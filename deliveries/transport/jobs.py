"""Requests on their way through the transport, and the places there are for them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import requests

from deliveries.transport.exchange import Exchange
from deliveries.transport.names import Name
from subscriptions.destinations import Destination


class Job:
    """One submitted request. `timeout` and times are in seconds (monotonic clock)."""

    __slots__ = (
        "budget",
        "deadline",
        "destination",
        "name",
        "on_done",
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
    ) -> None:
        self.request = request
        self.on_done = on_done
        self.timeout = timeout
        self.start_by = start_by
        self.destination: Destination | None = None


class Budget:
    """The places for requests of one kind, and those that wait for one.

    `submitted` is counted by whoever submits, under the driver's lock; the rest is the thread's.
    """

    __slots__ = ("ended", "in_flight", "places", "submitted", "waiting")

    def __init__(self, places: int) -> None:
        self.places = places
        self.in_flight = 0
        self.submitted = 0
        self.ended = 0
        self.waiting: OrderedDict[Job, None] = OrderedDict()

    @property
    def capacity(self) -> int:
        return self.places - (self.submitted - self.ended)
