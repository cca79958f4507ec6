"""The values that pass between claiming, sending and settling. They hold no behaviour."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field

from opentelemetry.trace import Span

from deliveries.judging.policy import Next
from deliveries.judging.response import Judged


@dataclass(slots=True)
class Payload:
    """What a request needs of its event. `users`: deliveries of one claim that share it."""

    topic: str
    body: bytes
    users: int = 0
    tenant: str = ""
    traceparent: str = ""


@dataclass(slots=True)
class ClaimedDelivery:
    """One delivery to send. `payload` is None if its body did not fit into the memory that the
    claim was given; `unsendable` says why it never can be sent. `published_at`: when it was
    published, as Unix time by this process's clock; None if it was attempted or held before.
    `traceparent`: its event's. `span`: the attempt's, if it had to begin with the request."""

    id: int
    event_id: str
    attempt_count: int
    retries_used: int
    published_at: float | None = None
    payload: Payload | None = None
    unsendable: str = ""
    topic: str = ""
    traceparent: str = ""
    span: Span | None = None


@dataclass(slots=True)
class ClaimedLane:
    """A subscription that this process may send for until the lease ends.

    `token` names the claim, and `lease` is its end as PostgreSQL writes it: it tells this claim's
    deliveries from those of any other. `expires_at` is that end by this process's monotonic
    clock, never later. `probe`: the circuit is tripped, and the one delivery is a probe.
    `unsendable`: why nothing can be signed, if so. `window`: requests in flight to begin with.
    `more`: the claim was full, so there may be more that is due.
    """

    subscription_id: uuid.UUID
    token: uuid.UUID
    name: str
    url: str = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    epoch: int
    secrets: list[str] = field(repr=False)
    unsendable: str
    max_in_flight: int
    window: int
    failures: int
    probe: bool
    expires_at: float
    lease: str = ""
    deliveries: list[ClaimedDelivery] = field(default_factory=list)
    more: bool = False
    tenant: str = ""


@dataclass(slots=True)
class Result:
    """What came of one request, and what follows. `started_at`: Unix time."""

    lane: ClaimedLane
    delivery: ClaimedDelivery
    judged: Judged
    next: Next
    started_at: float


@dataclass(slots=True)
class LaneEnd:
    """A lane is released: with what was claimed and not sent, and how it goes on.

    `backoff`: seconds in which nothing is sent, and why. `wake_in`: seconds until it is worth
    claiming again, if that is soon.
    """

    lane: ClaimedLane
    unsent: list[ClaimedDelivery]
    window: int
    failures: int
    backoff: float
    backoff_reason: str
    retrying_id: int | None
    wake_in: list[float]
