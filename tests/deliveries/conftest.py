"""A sender in the test's own process: real PostgreSQL, real sockets, no broker."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
import redis

from deliveries import publish
from deliveries.models import Delivery
from deliveries.sending.sender import Sender
from deliveries.transport import Transport
from deliveries.waking import wakeups
from subscriptions.models import Subscription
from tests.conftest import empty_redis
from tests.factories import make_subscription
from webhooks_project.receiver import Answer, Received, Receiver

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


class Script:
    """What a receiver answers: the next of `answers`, then 200 for ever."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.always: Answer | None = None
        self.during: Callable[[], None] | None = None

    def __call__(self, received: Received) -> Answer:
        if self.always is not None:
            return self.always
        return self.answers.pop(0) if self.answers else Answer(200)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def receiver(script: Script) -> Iterator[Receiver]:
    with Receiver(respond=script) as running:
        yield running


@pytest.fixture
def ordered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[UUID, str, float]]:
    """The wake-ups that would have been sent, as (subscription id, kind, seconds)."""
    calls: list[tuple[UUID, str, float]] = []

    def now(ids: Any, *, recovering: bool = False, **_: Any) -> None:
        calls.extend((one, "recover" if recovering else "deliver", 0.0) for one in ids)

    def later(_: Sender, subscription_id: UUID, seconds: float) -> None:
        calls.append((subscription_id, "recover", seconds))

    for module in ("publishing.publish", "waking.wakeups", "holding", "keeping.sweep"):
        monkeypatch.setattr(f"deliveries.{module}.wake", now, raising=False)
    monkeypatch.setattr(Sender, "_wake_later", later)
    return calls


@pytest.fixture
def sender(ordered: Any, configure: Callable[..., None]) -> Iterator[Sender]:
    """Lets loopback through; its threads end with the test's own process."""
    configure(allowed_networks=LOOPBACK, quick_retries=(1.0, 2.0, 4.0), retry_jitter=0.0)
    transport = Transport(timeout=5.0, allowed_networks=LOOPBACK)
    made = Sender(transport)
    yield made
    made.close()
    transport.close(5)


@pytest.fixture
def send(sender: Sender) -> Callable[..., None]:
    """Serve these subscriptions as one `deliver` task of the `recover` queue does."""

    def run(*subscriptions: Subscription, recovering: bool = True) -> None:
        sender.serve([one.pk for one in subscriptions], recovering=recovering)

    return run


def forget_clients() -> None:
    for cached in (wakeups.client, wakeups._waiting_client, wakeups._script):
        cached.cache_clear()


@pytest.fixture
def broker() -> Iterator[redis.Redis]:
    """The broker's own database of the embedded Valkey, empty; the flags are in the other."""
    forget_clients()
    wakeups.redis_outage._until = wakeups.broker_outage._until = 0.0
    client = empty_redis()
    yield client
    empty_redis().close()
    client.close()
    forget_clients()


@pytest.fixture
def deliveries() -> list[Delivery]:
    """Three deliveries of three events to one subscription, newest first."""
    make_subscription(name="billing")
    for number in range(3):
        publish("test.created", {"n": number, "note": "<script>alert(1)</script>"})
    return list(Delivery.objects.order_by("-id"))
