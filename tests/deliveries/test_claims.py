"""Claims that cross each other."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.db import connection
from django.utils import timezone

from deliveries import NewEvent, publish, publish_many
from deliveries.claiming import claims
from deliveries.claiming.claimer import Claimer
from deliveries.claiming.claims import claim
from deliveries.claiming.memory import BodyMemory
from deliveries.models import Attempt, Delivery, Lane
from deliveries.progress import Progress
from deliveries.sending.sender import Sender
from subscriptions import database
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_wake_up_is_not_lost_on_a_claim_that_finds_nothing_and_is_about_to_release(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {"n": 1})
    read, release, released = claims._take_singly, claims.release, []

    def after_somebody_else_took_it(cursor: Any, lanes: dict[Any, Any], *others: Any) -> Any:
        for lane in lanes.values():
            lane.deliveries.clear()
        return read(cursor, lanes, *others)

    def after_a_wake_up(cursor: Any, ids: Any, token: uuid.UUID) -> Any:
        released.append(token)
        monkeypatch.setattr(claims, "_take_singly", read)
        publish("test.one", {"n": 2})
        crossing = claim(ids, BodyMemory(2**20), str, token=uuid.uuid4(), failing_too=False)
        assert crossing.lanes == []
        return release(cursor, ids, token)

    monkeypatch.setattr(claims, "_take_singly", after_somebody_else_took_it)
    monkeypatch.setattr(claims, "release", after_a_wake_up)
    sender.serve([subscription.pk], recovering=False)
    assert len(released) == 1
    assert statuses(subscription) == {"succeeded": 2}


def test_a_lane_that_another_process_holds_is_not_taken(ordered: list[object]) -> None:
    subscription = make_subscription()

    def claimed() -> int:
        publish("test.one", {})
        token = uuid.uuid4()
        found = claim([subscription.pk], BodyMemory(2**20), str, token=token, failing_too=True)
        return len(found.lanes)

    assert claimed() == 1
    assert claimed() == 0, "until its lease is over"
    Lane.objects.update(lease_until=timezone.now())
    assert claimed() == 1


def test_a_lane_with_nothing_due_is_not_even_taken(sender: Sender, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url)
    sender.serve([subscription.pk], recovering=False)
    assert not Lane.objects.exists()


def test_a_claim_that_fails_takes_nothing_along(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one subscription, the others of the batch wait for no lease."""
    bad, good = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    publish("test.one", {})
    read = claims._lane

    def fails_for_one(row: Any, *others: Any) -> Any:
        if row.subscription_id == bad.pk:
            raise RuntimeError("a mistake of our own")
        return read(row, *others)

    with monkeypatch.context() as broken:
        broken.setattr(claims, "_lane", fails_for_one)
        sender.serve([bad.pk, good.pk], recovering=False)
    assert (statuses(bad), statuses(good)) == ({"pending": 1}, {"succeeded": 1})
    sender.serve([bad.pk], recovering=False)
    assert statuses(bad) == {"succeeded": 1}
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"success"}


def test_sending_without_prepared_statements(
    sender: Sender, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    """As behind PgBouncer in transaction mode."""
    configure(prepared_statements=False)
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    publish("test.one", {})
    script.answers = [Answer(200), Answer(410)]
    sender.serve([subscription.pk], recovering=False)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert statuses(subscription) == {"succeeded": 1, "failed": 1}


def test_the_workers_settings_stay_on_connections_of_their_own() -> None:
    def settings_found() -> tuple[str, ...]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('lock_timeout'), current_setting('enable_seqscan'), "
                "current_setting('plan_cache_mode'), current_setting('synchronous_commit')"
            )
            return tuple(cursor.fetchone())

    def as_a_stage_does() -> None:
        database.use_own_connection({"synchronous_commit": "off"})
        try:
            with database.worker_cursor():
                found.append(settings_found())
            assert connection.connection.info.transaction_status.name == "IDLE"
        finally:
            database.close_own_connection()

    found: list[tuple[str, ...]] = []
    thread = threading.Thread(target=as_a_stage_does)
    thread.start()
    thread.join()
    with database.worker_cursor():
        within = settings_found()
    assert found == [("200ms", "off", "force_generic_plan", "off")]
    assert within == ("200ms", "off", "force_generic_plan", "on")
    assert settings_found() == ("0", "on", "auto", "on")


def test_a_lane_that_somebody_has_locked_is_released_a_little_later(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle lane that is locked when a claim would release it is not leased for half a minute."""
    empty, other = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    publish("test.one", {})
    read, later = claims._take_singly, Claimer._release_later
    locked: list[Any] = []

    def after_somebody_locked_an_empty_lane(
        cursor: Any, lanes: dict[Any, Any], *others: Any
    ) -> Any:
        lanes[empty.pk].deliveries.clear()
        holder = connection.copy()
        holder.set_autocommit(False)
        with holder.cursor() as at_the_lane:
            at_the_lane.execute(
                "UPDATE deliveries_lane SET wake_again = true WHERE subscription_id = %s",
                [empty.pk],
            )
        locked.append(holder)
        monkeypatch.setattr(claims, "_take_singly", read)
        return read(cursor, lanes, *others)

    def when_it_is_unlocked(*arguments: Any) -> None:
        locked[0].commit()
        locked[0].close()
        later(*arguments)

    monkeypatch.setattr(claims, "_take_singly", after_somebody_locked_an_empty_lane)
    monkeypatch.setattr(Claimer, "_release_later", when_it_is_unlocked)
    sender.serve([empty.pk, other.pk], recovering=False)
    assert statuses(other) == {"succeeded": 1}
    eventually(lambda: Lane.objects.filter(pk=empty.pk, lease_token=None).exists())


def locking(subscription: Any) -> Any:
    """A connection that holds the subscription's lane locked, as a long transaction would."""
    holder = connection.copy()
    holder.set_autocommit(False)
    with holder.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM deliveries_lane WHERE subscription_id = %s FOR UPDATE",
            [subscription.pk],
        )
    return holder


def test_a_lane_that_somebody_has_locked_holds_up_no_other(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is not claimed together with others again and again: it waits, longer each time."""
    stuck = make_subscription(url=receiver.url, topic_patterns=["stuck"])
    others = [make_subscription(url=receiver.url, topic_patterns=["other"]) for _ in range(5)]
    publish("stuck", {})
    sender.serve([stuck.pk], recovering=False)
    publish("stuck", {})
    rounds: list[float] = []
    delays: list[float] = []
    holder = locking(stuck)
    try:
        real = Claimer._later

        def note(self: Claimer, subscription_id: Any, seconds: float) -> None:
            delays.append(seconds)
            real(self, subscription_id, seconds)

        monkeypatch.setattr(Claimer, "_later", note)
        waiting = threading.Thread(
            target=sender.serve, args=([stuck.pk],), kwargs={"recovering": False}
        )
        waiting.start()
        for _ in range(10):
            publish("other", {})
            began = time.monotonic()
            sender._claimers[False].put([one.pk for one in others])
            eventually(
                lambda: (
                    not Delivery.objects.filter(status="pending", subscription__in=others).exists()
                )
            )
            rounds.append(time.monotonic() - began)
        eventually(lambda: len(delays) >= 4)
    finally:
        holder.rollback()
        holder.close()
    waiting.join(20)
    assert statuses(stuck) == {"succeeded": 2}
    assert sorted(delays) == delays, "the delay grows"
    assert sorted(rounds)[5] < 0.2, "no round waits for a lock"


class Noting(Claimer):
    """It claims nothing: it waits for so many seconds so many times, and notes how long it took."""

    def __init__(self, seconds: float, times: int) -> None:
        self.took: list[float] = []
        self._seconds = seconds
        self._times = times
        self._since = 0.0
        super().__init__(
            recovering=False,
            memory=BodyMemory(2**20),
            progress=Progress(),
            places=lambda: 1,
            on_claimed=lambda lanes, recovering: None,
            stopping=threading.Event(),
        )

    def handle(self, subscription_ids: list[uuid.UUID]) -> None:
        now = time.monotonic()
        self.took.append(now - self._since)
        self._since = now
        if len(self.took) < self._times:
            self._later(subscription_ids[0], self._seconds)
        for _ in subscription_ids:
            self._progress.end()


def test_a_short_wait_is_short_while_the_process_listens(broker: redis.Redis) -> None:
    """As for a lane that a settlement has locked: the next event for it waits a few ms."""
    claimer = Noting(0.02, times=12)
    claimer.put([uuid.uuid4()])
    claimer.listen()
    try:
        eventually(lambda: len(claimer.took) == 12)
    finally:
        claimer.close()
    waits = sorted(claimer.took[1:])
    assert waits[0] >= 0.02
    assert waits[5] < 0.045, "a wait in Redis ends at its next look, 100 ms apart"


def test_the_bodies_that_a_process_holds_have_a_limit(
    sender: Sender, script: Script, receiver: Receiver, configure: Callable[..., None]
) -> None:
    """Slow receivers and large payloads: what one process holds does not grow with their number."""
    configure(max_payload_bytes=2**20)
    sender._memories[False].limit = 300_000
    body = "x" * 60_000
    subscriptions = [
        make_subscription(url=receiver.url, topic_patterns=[f"to.{n}"], max_in_flight=2)
        for n in range(10)
    ]
    publish_many(
        [NewEvent(topic=f"to.{n}", payload={"b": body}) for n in range(10) for _ in range(6)]
    )
    script.always = Answer(200, delay=0.02)
    held: list[int] = []
    memory = sender._memories[False]
    hold = memory.hold

    def note(payloads: Any) -> None:
        hold(payloads)
        held.append(memory.held)

    memory.hold = note  # type: ignore[method-assign]
    sender.serve([one.pk for one in subscriptions], recovering=False)
    assert all(statuses(one) == {"succeeded": 6} for one in subscriptions)
    assert max(held) <= 300_000 + 61_000, "the limit, and one body"
    assert memory.held == 0
