"""What the API answers, as frozen dataclasses. Times are aware."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Published:
    """An event that is recorded.

    `subscriptions`: how many of its tenant's get it. `already_published`: an event with this id
    and content had been published before, perhaps by an earlier try of the same call.
    """

    id: str
    topic: str
    type: str
    tenant: str
    created_at: datetime
    subscriptions: int
    already_published: bool


@dataclass(frozen=True)
class Event:
    """An event in a list."""

    id: str
    topic: str
    type: str
    tenant: str
    created_at: datetime


@dataclass(frozen=True)
class EventDelivery:
    """Where an event goes."""

    id: int
    subscription: str
    status: str
    next_attempt_at: datetime | None
    attempt_count: int
    last_error: str
    finished_at: datetime | None


@dataclass(frozen=True)
class EventDetails(Event):
    """An event with its payload, and where it went: `counts` of deliveries by status, and the
    newest 100 of them."""

    payload: dict[str, Any] = field(repr=False)
    counts: dict[str, int]
    deliveries: tuple[EventDelivery, ...]


@dataclass(frozen=True)
class Delivery:
    """One event for one subscription. `topic` is None once the event was pruned."""

    id: int
    event: str
    topic: str | None
    subscription: str
    tenant: str
    status: str
    next_attempt_at: datetime | None
    attempt_count: int
    last_error: str
    created_at: datetime
    held_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class Attempt:
    """One request of a delivery. `status_code` None: there was no answer; `error` says why."""

    number: int
    outcome: str
    status_code: int | None
    error: str
    response_body: str
    remote_address: str
    started_at: datetime
    duration_ms: int


@dataclass(frozen=True)
class DeliveryDetails(Delivery):
    """A delivery with its attempts, the latest first, 100 at most."""

    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Subscription:
    """A receiver's URL, the topic patterns it wants, and the state of its circuit.

    `state` is `active`, `paused` or `tripped`. `etag` is for `update` and `delete`: they do
    nothing if somebody else has changed it since; it is "" in lists.
    """

    id: str
    tenant: str
    all_tenants: bool
    name: str
    url: str
    topic_patterns: tuple[str, ...]
    headers: dict[str, str] = field(repr=False)
    max_in_flight: int
    recovery: str
    enabled: bool
    state: str
    warnings: tuple[str, ...]
    consecutive_failures: int
    auto_disabled_at: datetime | None
    last_success_at: datetime | None
    last_failure_at: datetime | None
    last_error: str
    next_probe_at: datetime | None
    created_at: datetime
    updated_at: datetime
    etag: str = ""


@dataclass(frozen=True)
class NewSubscription(Subscription):
    """A subscription that was just made. `secret` is to be had this once; None if you gave it."""

    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RotatedSecret:
    """A new signing secret, to be had this once; None if you gave it.

    Until `old_secrets_end_at` requests carry a signature by the old ones too; None: there was none.
    """

    secret: str | None = field(repr=False)
    old_secrets_end_at: datetime | None


@dataclass(frozen=True)
class TestResult:
    """What the receiver said to a test event. `status_code` None: nothing; `error` says why."""

    __test__ = False  # no class of pytest's

    succeeded: bool
    event_id: str
    status_code: int | None
    error: str
    response_body: str
    duration_ms: int
    remote_address: str


@dataclass(frozen=True)
class Replayed:
    """How many deliveries are due again, and how many are held until theirs is active again."""

    pending: int
    held: int


@dataclass(frozen=True)
class ReplayedSome(Replayed):
    """`Replayed` by one request; `next_cursor` says where the next goes on."""

    next_cursor: str | None


@dataclass(frozen=True)
class RecentDeliveries:
    """The newest deliveries, at most 1,000, by status; times of their requests in milliseconds."""

    since: datetime | None
    pending: int
    held: int
    succeeded: int
    failed: int
    discarded: int
    attempts: int
    duration_ms_p50: int | None
    duration_ms_p99: int | None


@dataclass(frozen=True)
class Stats:
    """How it goes with a subscription: what waits, whether it is sent to, how the newest went."""

    pending: int
    held: int
    discarding: int
    backing_off_until: datetime | None
    backing_off_because: str | None
    failed_attempts: int
    sending_until: datetime | None
    recent: RecentDeliveries


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list. `next_cursor`: where the next begins; None: this is the last one."""

    data: tuple[T, ...]
    next_cursor: str | None
