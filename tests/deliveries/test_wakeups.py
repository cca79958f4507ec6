"""Wake-ups in the embedded Valkey: when a message is sent, who takes what, and in which order."""

from __future__ import annotations

import base64
import json
import time
from typing import Any
from uuid import UUID

import pytest
import redis
from amqp.exceptions import AccessRefused
from kombu import exceptions

from deliveries.waking import wakeups
from deliveries.waking.wakeups import Listener, wake
from tests.webhooks_project.waiting import eventually

IDS = [UUID(int=number) for number in range(250)]


def messages(broker: redis.Redis, queue: str) -> list[list[str]]:
    """The arguments of each waiting message, the first sent first."""
    found: list[Any] = broker.lrange(queue, 0, -1)  # type: ignore[assignment]
    bodies = [json.loads(base64.b64decode(json.loads(one)["body"])) for one in reversed(found)]
    return [arguments[0] for arguments, *_ in bodies]


def take_all(queue: str = "deliver") -> list[UUID]:
    listener = Listener(queue)
    found: list[str] = []
    while some := listener.take(200, wait=0):
        found += some
    return [UUID(text) for text in found]


def test_an_idle_system_gets_a_message_and_a_busy_one_shares_it(broker: redis.Redis) -> None:
    wake(IDS[:3])
    wake(IDS[1:20])
    assert messages(broker, "deliver") == [[]]
    assert sorted(take_all(), key=int) == IDS[:20], "each subscription is due once"
    wake(IDS[:1])
    assert len(messages(broker, "deliver")) == 1, "somebody listens"


def test_a_lost_message_is_sent_again_when_its_bell_has_ended(
    broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeups, "BELL_SECONDS", 0.05)
    wake(IDS[:1])
    broker.delete("deliver")

    def rung_again() -> bool:
        wake(IDS[:1])
        return bool(messages(broker, "deliver"))

    eventually(rung_again)


def test_a_listener_that_stops_leaves_nothing_behind(broker: redis.Redis) -> None:
    wake(IDS[:1])
    listener = Listener("deliver")
    assert not listener.stop(), "something is due"
    assert listener.take(200, wait=0) == [str(IDS[0])]
    assert listener.stop()
    wake(IDS[:1])
    assert len(messages(broker, "deliver")) == 2, "who comes after it sends a message"


def test_a_listener_that_waits_hears_a_wake_up_at_once(broker: redis.Redis) -> None:
    import threading

    heard: list[str] = []
    thread = threading.Thread(target=lambda: heard.extend(Listener("deliver").take(1, wait=20)))
    thread.start()
    wake(IDS[:1])
    thread.join(20)
    assert heard == [str(IDS[0])]


def test_a_large_event_does_not_hold_up_the_one_for_somebody_else(broker: redis.Redis) -> None:
    wake([UUID(int=number) for number in range(1000, 4000)])
    wake([UUID(int=1)])
    listener = Listener("deliver")
    taken = [UUID(text) for _ in range(5) for text in listener.take(200, wait=0)]
    assert UUID(int=1) in taken


def test_the_sweep_gives_nobody_an_earlier_turn(broker: redis.Redis) -> None:
    crowd = [UUID(int=number) for number in range(1000, 2000)]
    wake(crowd)
    wake(reversed(crowd), keep_place=True)
    wake([UUID(int=1)])
    assert take_all().index(UUID(int=1)) < 500


def test_other_workers_are_asked_for_help_once_a_second(broker: redis.Redis) -> None:
    wake(IDS)
    listener = Listener("deliver")
    for _ in range(5):
        listener.take(10, wait=0)
    assert len(messages(broker, "deliver")) == 2, "the first, and one for help"


def test_queues_are_apart(broker: redis.Redis) -> None:
    wake(IDS[:1])
    wake(IDS[1:2], recovering=True)
    assert take_all("deliver") == IDS[:1]
    assert take_all("recover") == IDS[1:2]


@pytest.mark.parametrize(
    "error",
    [exceptions.OperationalError("the connection went away"), AccessRefused("a new password")],
)
def test_a_message_that_cannot_be_sent_is_an_outage_and_leaves_no_bell(
    broker: redis.Redis, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(wakeups, "broker_outage", wakeups.Outage("the broker"))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("celery.app.base.Celery.send_task", fail)
    wake(IDS[:20])
    assert wakeups.broker_outage.lasting()
    assert not wakeups.client().keys("webhooks:*bell")


def test_without_redis_the_ids_travel_in_the_messages(
    broker: redis.Redis, monkeypatch: pytest.MonkeyPatch, configure: Any
) -> None:
    configure(fanout_chunk=100)
    outage = wakeups.Outage("Redis")
    outage.begin(redis.ConnectionError("away"))
    monkeypatch.setattr(wakeups, "redis_outage", outage)
    wake(IDS)
    sent = messages(broker, "deliver")
    assert [len(ids) for ids in sent] == [100, 100, 50]
    assert [UUID(text) for ids in sent for text in ids] == IDS


def test_an_application_that_runs_its_tasks_eagerly_sends_nothing_by_itself(
    broker: redis.Redis,
) -> None:
    from celery import current_app

    current_app.conf.task_always_eager = True
    try:
        wake(IDS[:1])
    finally:
        current_app.conf.task_always_eager = False
    assert messages(broker, "deliver") == []
    assert not wakeups.client().keys("webhooks:*")


def test_a_wake_up_waits_for_a_silent_redis_a_moment_and_the_next_not_at_all(
    monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        settings.REDIS_URL = f"redis://127.0.0.1:{port}/0"
        monkeypatch.setattr(wakeups, "redis_outage", wakeups.Outage("Redis"))
        monkeypatch.setattr(wakeups, "_send", lambda *_: True)
        for cached in (wakeups.client, wakeups._script):
            cached.cache_clear()
        try:
            began = time.monotonic()
            wake(IDS[:1])
            first = time.monotonic() - began
            wake(IDS[:1])
            second = time.monotonic() - began - first
        finally:
            for cached in (wakeups.client, wakeups._script):
                cached.cache_clear()
    assert 0.2 < first < 3
    assert second < 0.2


def test_a_rabbitmq_that_reads_nothing_any_more_is_an_error_within_a_second() -> None:
    """As with a memory alarm: it blocks its publishers by not reading."""
    import socket

    from amqp.transport import TCPTransport

    from deliveries import celeryconfig

    timeout = celeryconfig.broker_transport_options["write_timeout"]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        transport = TCPTransport(
            f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout=5, write_timeout=timeout
        )
        transport.connect()
        began = time.monotonic()
        try:
            with pytest.raises(OSError):
                for _ in range(1000):
                    transport.write(b"x" * 65536)
        finally:
            transport.close()
    assert time.monotonic() - began < 5
