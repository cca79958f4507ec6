"""What becomes of deliveries: claimed, sent, settled, in one process, rule by rule."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.db import OperationalError, connection
from django.db.models import F
from django.utils import timezone

from deliveries import NewEvent, publish, publish_many
from deliveries.claiming import claimer
from deliveries.keeping import sweep as sweeping
from deliveries.keeping.housekeeping import prune
from deliveries.keeping.sweep import Swept, sweep
from deliveries.models import Attempt, Delivery, Event, Lane
from deliveries.sending import sender as sending
from deliveries.sending.sender import Sender
from subscriptions import circuit
from subscriptions.models import SigningSecret, Subscription
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = pytest.mark.django_db(transaction=True)

Send = Callable[..., None]


def make_due(**which: Any) -> None:
    """Let the time of every pending retry, and every lane's rest, be over."""
    Delivery.objects.filter(status="pending", **which).update(next_attempt_at=timezone.now())
    Lane.objects.update(resume_at=None)


def publish_numbered(count: int) -> None:
    publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(count)])


def the_delivery() -> Delivery:
    return Delivery.objects.get()


def test_a_success_ends_a_delivery(send: Send, receiver: Receiver, script: Script) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.answers = [Answer(201, b"thank you")]
    send(subscription)
    delivery = the_delivery()
    assert delivery.status == "succeeded"
    assert delivery.next_attempt_at is None
    assert delivery.lease_until is None
    assert delivery.finished_at is not None
    attempt = Attempt.objects.get()
    assert (attempt.status_code, attempt.response_body) == (201, "thank you")
    subscription.refresh_from_db()
    assert subscription.last_success_at is not None


def test_a_failure_is_planned_again_and_announced(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    ordered.clear()
    script.answers = [Answer(500, b"no\x00pe\x1b[31m")]
    before = timezone.now()
    send(subscription)
    delivery = the_delivery()
    assert (delivery.status, delivery.attempt_count, delivery.retries_used) == ("pending", 1, 1)
    assert delivery.next_attempt_at is not None
    assert delivery.next_attempt_at >= before + timedelta(seconds=0.9)
    assert ordered == [(subscription.pk, "recover", pytest.approx(1.05))]
    attempt = Attempt.objects.get()
    assert (attempt.outcome, attempt.status_code) == ("http", 500)
    assert "\x00" not in attempt.response_body
    assert "\x1b" not in attempt.response_body
    assert attempt.response_body.startswith("no")


def test_four_quick_failures_are_one_failure_for_the_circuit(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.always = Answer(503)
    counts = []
    for _ in range(4):
        send(subscription)
        subscription.refresh_from_db()
        counts.append(subscription.consecutive_failures)
        make_due()
    assert counts == [0, 0, 0, 1]
    assert the_delivery().attempt_count == 4


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404])
def test_a_final_answer_fails_the_delivery_at_once_and_counts(
    send: Send, receiver: Receiver, script: Script, status: int
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.always = Answer(status, headers={"Location": receiver.url})
    send(subscription)
    delivery = the_delivery()
    assert (delivery.status, delivery.attempt_count) == ("failed", 1)
    assert delivery.last_error.startswith(str(status))
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1
    assert len(receiver.received) == 1


def test_gone_trips_at_once_and_holds_the_rest(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(5)
    script.always = Answer(410)
    send(subscription)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert statuses(subscription) == {"failed": 1, "held": 4}
    assert len(receiver.received) == 1


def test_a_rate_limit_is_honoured_by_the_whole_lane_and_never_counts(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(3)
    ordered.clear()
    script.always = Answer(429, headers={"Retry-After": "30"})
    send(subscription)
    send(subscription)
    assert len(receiver.received) == 1
    assert ordered == [(subscription.pk, "recover", pytest.approx(30.05))]
    subscription.refresh_from_db()
    assert (subscription.state, subscription.consecutive_failures) == ("active", 0)
    lane = Lane.objects.get()
    assert lane.resume_at is not None
    assert lane.resume_at > timezone.now() + timedelta(seconds=25)


def test_after_one_failure_another_delivery_is_tried_and_a_healthy_receiver_goes_on(
    send: Send, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    configure(quick_retries=(600.0,))  # however slow the machine, not due before the end
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(30)
    script.answers = [Answer(500)]
    send(subscription)
    assert statuses(subscription) == {"pending": 1, "succeeded": 29}
    lane = Lane.objects.get()
    assert (lane.failures, lane.resume_at) == (0, None)


def test_a_dead_receiver_is_asked_twice_and_then_left_in_peace(
    send: Send, receiver: Receiver, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(50)
    receiver.stop()
    send(subscription)
    assert Attempt.objects.count() == 2
    assert {one.outcome for one in Attempt.objects.all()} == {"refused"}
    assert Lane.objects.get().failures == 2
    send(subscription)
    assert Attempt.objects.count() == 2


def test_a_failing_receiver_gets_one_request_at_a_time_the_same_delivery_first(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_numbered(40)
    script.always = Answer(500)
    send(subscription)
    first = len(receiver.received)
    assert first <= 11
    for _ in range(3):
        make_due()
        send(subscription)
    later = [one.id for one in receiver.received[first:]]
    assert len(set(later)) == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 1


def test_deliveries_in_the_deliver_queue_pass_a_failing_subscription_on(
    send: Send, receiver: Receiver, ordered: list[Any]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    Lane.objects.create(subscription=subscription, failures=1, window=1)
    ordered.clear()
    send(subscription, recovering=False)
    assert len(receiver.received) == 0
    assert ordered == [(subscription.pk, "recover", 0.0)]


def test_deliveries_that_cannot_be_signed_wait_for_the_right_key_and_hold_up_no_others(
    send: Send, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    poisoned, healthy = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    secret = SigningSecret.objects.get(subscription=poisoned)
    SigningSecret.objects.filter(pk=secret.pk).update(ciphertext="gAAAAAnonsense")
    publish("test.one", {})
    send(poisoned, healthy)
    assert statuses(healthy) == {"succeeded": 1}
    for _ in range(20):
        make_due()
        send(poisoned)
    delivery = Delivery.objects.get(subscription=poisoned)
    assert (delivery.status, delivery.retries_used) == ("pending", 0)
    assert "secret" in Lane.objects.get(subscription=poisoned).backoff_reason
    assert not Attempt.objects.filter(delivery=delivery).exists()
    assert f"Nothing can be sent to subscription {poisoned.name} ({poisoned.pk})" in caplog.text
    poisoned.refresh_from_db()
    assert (poisoned.state, poisoned.consecutive_failures) == ("active", 0)
    SigningSecret.objects.filter(pk=secret.pk).update(ciphertext=secret.ciphertext)
    make_due()
    send(poisoned)
    assert statuses(poisoned) == {"succeeded": 1}


def test_a_subscription_without_a_secret_sends_nothing_unsigned(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    subscription.secrets.all().delete()
    publish("test.one", {})
    for _ in range(4):
        send(subscription)
        make_due()
    assert len(receiver.received) == 0
    assert statuses(subscription) == {"pending": 1}
    subscription.add_secret()
    send(subscription)
    assert statuses(subscription) == {"succeeded": 1}


def test_an_id_that_was_removed_and_published_again_sends_the_new_body(
    send: Send, receiver: Receiver, configure: Callable[..., None]
) -> None:
    subscription = make_subscription(url=receiver.url)
    configure(keep_succeeded_days=10 / 86400)
    publish("test.one", {"n": 1}, event_id="again")
    send(subscription)
    Delivery.objects.update(finished_at=timezone.now() - timedelta(seconds=11))
    Event.objects.update(created_at=timezone.now() - timedelta(seconds=11))
    assert prune() == (1, 1)
    publish("test.one", {"n": 2}, event_id="again")
    send(subscription)
    assert [json.loads(one.body)["payload"]["n"] for one in receiver.received] == [1, 2]


@pytest.mark.parametrize("answer", [200, 500])
def test_a_result_that_is_settled_twice_counts_once(
    sender: Sender,
    receiver: Receiver,
    script: Script,
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    answer: int,
) -> None:
    """The commit's answer is lost, and meanwhile another worker counts failures."""
    configure(quick_retries=())
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    script.answers = [Answer(answer)]
    settle = sending.settle

    def lose_the_answer(*items: Any, **more: Any) -> Any:
        settle(*items, **more)
        Subscription.objects.update(consecutive_failures=F("consecutive_failures") + 1)
        monkeypatch.setattr(sending, "settle", settle)
        raise OperationalError("the connection was lost with the commit's answer")

    monkeypatch.setattr(sending, "settle", lose_the_answer)
    sender.serve([subscription.pk], recovering=True)
    assert Attempt.objects.count() == 1
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == (1 if answer == 200 else 2)


def test_a_delivery_whose_event_is_gone_ends_visibly(send: Send, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    publish("test.two", {})
    Event.objects.filter(topic="test.one").delete()
    send(subscription)
    assert statuses(subscription) == {"failed": 1, "succeeded": 1}


def test_a_forbidden_address_is_not_dialled(
    ordered: list[Any], configure: Callable[..., None], receiver: Receiver, sender: Sender
) -> None:
    from deliveries.transport import Transport

    strict = Sender(Transport(timeout=2.0, allowed_networks=()))
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    strict.serve([subscription.pk], recovering=True)
    assert len(receiver.received) == 0
    attempt = Attempt.objects.get()
    assert attempt.outcome == "blocked"
    assert "loopback" in attempt.error
    strict.close()


def test_a_probe_that_succeeds_closes_the_circuit(
    send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = tripped(send, receiver, script)
    held = Delivery.objects.filter(status="held").count()
    script.always = None
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before, "nothing before the probe is due"
    Subscription.objects.update(next_probe_at=timezone.now())
    assert sweep().probes == 1
    send(subscription)
    subscription.refresh_from_db()
    assert subscription.state == "active"
    assert (subscription.consecutive_failures, subscription.last_error) == (0, "")
    send(subscription)
    assert Delivery.objects.filter(status="succeeded").count() == held
    oldest = Delivery.objects.order_by("id").exclude(status="failed").first()
    assert oldest is not None
    assert receiver.received[before].id == oldest.event_id


def tripped(send: Send, receiver: Receiver, script: Script) -> Subscription:
    """A subscription that five final answers tripped, with a few deliveries held."""
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(8)
    script.always = Answer(404)
    send(subscription)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert statuses(subscription) == {"failed": 5, "held": 3}
    return subscription


def test_a_probe_that_fails_leaves_all_as_it_was_and_comes_later(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    script.always = Answer(500)
    Subscription.objects.update(next_probe_at=timezone.now())
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before + 1
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert subscription.probe_count == 1
    assert subscription.next_probe_at is not None
    assert subscription.next_probe_at > timezone.now() + timedelta(seconds=500)
    assert statuses(subscription) == {"failed": 5, "held": 3}


def test_a_manual_circuit_is_never_probed(send: Send, receiver: Receiver, script: Script) -> None:
    subscription = tripped(send, receiver, script)
    Subscription.objects.update(next_probe_at=None, recovery="manual")
    assert sweep().probes == 0
    before = len(receiver.received)
    send(subscription)
    assert len(receiver.received) == before


def test_a_release_begins_with_one_request_and_doubles(sender: Sender, ordered: list[Any]) -> None:
    """What is in flight together: one, two, four … up to the subscription's own limit."""
    in_flight: list[int] = []

    def respond(_: Received) -> Answer:
        return Answer(200, delay=0.05)

    with Receiver(respond=respond) as slow:
        subscription = make_subscription(url=slow.url, max_in_flight=8)
        circuit.pause([subscription.pk])
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO deliveries_event (id, topic, type, body, created_at) "
                "VALUES ('e', 'test.one', '', '{}', now())"
            )
            cursor.execute(
                "INSERT INTO deliveries_delivery (event_id, subscription_id, status, "
                "attempt_count, retries_used, last_error, created_at) "
                "SELECT 'e', %s, 'held', 0, 0, '', now() FROM generate_series(1, 63)",
                [subscription.pk],
            )
        circuit.reset([subscription.pk])
        while Delivery.objects.filter(status="pending").exists():
            sender.serve([subscription.pk], recovering=True)
        arrivals = [one.at for one in slow.received]
        end = [at + 0.05 for at in arrivals]
        for number, at in enumerate(arrivals):
            in_flight.append(
                sum(
                    1
                    for begin, over in zip(arrivals, end, strict=True)
                    if begin <= at < over and begin <= arrivals[number]
                )
            )
    assert len(arrivals) == 63
    assert in_flight[0] == 1
    assert max(in_flight[:3]) <= 2
    assert max(in_flight[:7]) <= 4
    assert 4 < max(in_flight) <= 8


@pytest.fixture
def stale_at_once(configure: Callable[..., None]) -> None:
    """Each answer finds the claim too old to begin another request."""
    configure(time_slice=0.0)


def test_a_pause_while_a_request_is_in_flight_keeps_its_result(
    sender: Sender, ordered: list[Any], stale_at_once: None
) -> None:
    with held_request(sender) as (subscription, let_go):
        circuit.pause([subscription.pk])
        assert statuses(subscription) == {"held": 2}
        let_go()
    assert statuses(subscription) == {"succeeded": 1, "held": 1}
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_deletion_while_a_request_is_in_flight_leaves_the_truth(
    sender: Sender, ordered: list[Any], stale_at_once: None
) -> None:
    with held_request(sender) as (subscription, let_go):
        key = subscription.pk
        subscription.delete()
        found = Delivery.objects.filter(subscription_id=key)
        assert {one.status for one in found} == {"discarded"}
        assert {one.last_error for one in found} == {"its subscription was deleted"}
        let_go()
    assert sorted(one.status for one in found.all()) == ["discarded", "succeeded"]
    assert not Lane.objects.exists()


def test_a_failure_that_comes_back_after_a_new_url_does_not_count(
    sender: Sender, ordered: list[Any]
) -> None:
    with held_request(sender, status=404) as (subscription, let_go):
        subscription.url = "http://127.0.0.1:9/"
        subscription.save()
        let_go()
    subscription.refresh_from_db()
    assert subscription.consecutive_failures == 0
    assert not subscription.last_error.startswith("404")
    assert statuses(subscription)["failed"] == 1


class held_request:
    """Two deliveries, the first of which is in flight until `let_go` is called."""

    def __init__(self, sender: Sender, status: int = 200) -> None:
        self._sender = sender
        self._status = status

    def __enter__(self) -> tuple[Subscription, Callable[[], None]]:
        self._receiver = Receiver(respond=lambda _: Answer(self._status))
        self._receiver.start()
        self._receiver.pause()
        subscription = make_subscription(url=self._receiver.url, max_in_flight=1)
        publish_numbered(2)
        self._thread = threading.Thread(
            target=self._sender.serve,
            args=([subscription.pk],),
            kwargs={"recovering": True},
        )
        places = self._sender.transport.capacity(recovering=True)
        self._thread.start()
        eventually(lambda: self._sender.transport.capacity(recovering=True) < places)
        return subscription, self._let_go

    def _let_go(self) -> None:
        self._receiver.start()
        self._thread.join(20)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self._receiver.close()
        self._thread.join(20)


def test_an_expired_lease_is_an_attempt_of_unknown_outcome_and_sent_again(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    past = timezone.now() - timedelta(seconds=1)
    Delivery.objects.update(lease_until=past)
    Lane.objects.create(subscription=subscription, lease_until=past)
    send(subscription)
    assert the_delivery().status == "succeeded"
    assert the_delivery().attempt_count == 2
    assert [(one.number, one.outcome) for one in Attempt.objects.order_by("number")] == [
        (1, "unknown"),
        (2, "success"),
    ]


def test_a_lane_that_somebody_serves_is_left_to_him_and_marked(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    Lane.objects.create(
        subscription=subscription, lease_until=timezone.now() + timedelta(seconds=60)
    )
    send(subscription)
    assert len(receiver.received) == 0
    assert Lane.objects.get().wake_again


def test_twenty_tasks_for_one_subscription_send_each_event_once(
    sender: Sender, receiver: Receiver, at_once: Callable[..., list[Any]]
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish_numbered(100)
    at_once(lambda _: sender.serve([subscription.pk], recovering=True), 20)
    assert statuses(subscription) == {"succeeded": 100}
    assert len(receiver.received) == 100


def test_a_result_that_the_database_refuses_ends_alone(
    send: Send, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sending.judge_response

    def spoil(answer: Any) -> Any:
        from dataclasses import replace

        judged = real(answer)
        return replace(judged, response_body="a\x00b") if spoiled.pop() else judged

    spoiled = [False] * 5 + [True] + [False] * 4
    monkeypatch.setattr(sending, "judge_response", spoil)
    subscription = make_subscription(url=receiver.url)
    publish_numbered(10)
    send(subscription)
    assert statuses(subscription) == {"succeeded": 9, "failed": 1}
    assert "could not be recorded" in Delivery.objects.get(status="failed").last_error


def test_a_slice_that_is_over_gives_the_others_their_turn(
    sender: Sender,
    configure: Callable[..., None],
    script: Script,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(time_slice=0.1)
    busy = make_subscription(url=receiver.url, max_in_flight=1, topic_patterns=["busy"])
    publish_many([NewEvent(topic="busy", payload={"n": n}) for n in range(20)])
    script.always = Answer(200, delay=0.03)
    claims: list[list[UUID]] = []
    claim = claimer.claim

    def note(ids: list[UUID], *others: Any, **more: Any) -> Any:
        claims.append(list(ids))
        return claim(ids, *others, **more)

    monkeypatch.setattr(claimer, "claim", note)
    sender.serve([busy.pk], recovering=False)
    assert statuses(busy) == {"succeeded": 20}
    assert len(claims) > 2, "the lane was released and claimed again"
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_sender_that_stops_finishes_what_is_in_flight_and_begins_nothing(
    sender: Sender, ordered: list[Any]
) -> None:
    with held_request(sender) as (subscription, let_go):
        sender.stop()
        let_go()
    assert statuses(subscription) == {"succeeded": 1, "pending": 1}
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_the_sweep_finds_due_work_and_leaves_the_rest_alone(ordered: list[Any]) -> None:
    due, resting, served, later = (make_subscription() for _ in range(4))
    publish("test.one", {})
    soon = timezone.now() + timedelta(seconds=60)
    Lane.objects.create(subscription=resting, resume_at=soon)
    Lane.objects.create(subscription=served, lease_until=soon)
    Delivery.objects.filter(subscription=later).update(next_attempt_at=soon)
    ordered.clear()
    assert sweep() == Swept(due=1, failing=0, probes=0, stopped=0, deleted=0)
    assert ordered == [(due.pk, "deliver", 0.0)]


def test_the_sweep_holds_and_discards_what_slipped_in(ordered: list[Any]) -> None:
    paused, deleted = make_subscription(), make_subscription()
    publish("test.one", {})
    key = deleted.pk
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET enabled = false WHERE id = %s", [paused.pk]
        )
        cursor.execute("DELETE FROM subscriptions_signingsecret WHERE subscription_id = %s", [key])
        cursor.execute("DELETE FROM subscriptions_subscription WHERE id = %s", [key])
    found = sweep()
    assert (found.stopped, found.deleted) == (1, 1)
    assert statuses(paused) == {"held": 1}
    assert Delivery.objects.get(subscription_id=key).status == "discarded"


def test_held_deliveries_are_discarded_if_the_operator_says_so(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    circuit.reset([subscription.pk], discard_held=True)
    assert statuses(subscription) == {"failed": 5, "discarded": 3}
    assert Delivery.objects.filter(last_error="discarded by an operator").count() == 3


def test_a_failed_probe_never_costs_the_delivery_that_it_probes_with(
    send: Send, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    configure(slow_retries=())
    subscription = tripped(send, receiver, script)
    script.always = Answer(503)
    Delivery.objects.filter(status="held").update(retries_used=3)
    for _ in range(3):
        Subscription.objects.update(next_probe_at=timezone.now())
        send(subscription)
    assert statuses(subscription) == {"failed": 5, "held": 3}


def test_a_probe_in_flight_does_not_enable_what_an_operator_paused(
    sender: Sender, send: Send, receiver: Receiver, script: Script, ordered: list[Any]
) -> None:
    subscription = tripped(send, receiver, script)
    script.always = Answer(200)
    Subscription.objects.update(next_probe_at=timezone.now())
    receiver.pause()
    thread = threading.Thread(
        target=sender.serve, args=([subscription.pk],), kwargs={"recovering": True}
    )
    thread.start()
    waiting = threading.Event()
    while not Delivery.objects.exclude(lease_until=None).exists():
        assert not waiting.wait(0.01)
    circuit.pause([subscription.pk])
    receiver.start()
    thread.join(20)
    subscription.refresh_from_db()
    assert subscription.state == "paused"
    assert statuses(subscription) == {"failed": 5, "succeeded": 1, "held": 2}


def test_manual_recovery_holds_for_what_is_tripped_already(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = tripped(send, receiver, script)
    subscription.recovery = "manual"
    subscription.save()
    assert subscription.next_probe_at is None
    subscription.recovery = "automatic"
    subscription.save()
    assert subscription.next_probe_at is not None


def test_the_sweep_releases_what_was_published_while_the_circuit_was_reset(
    send: Send, receiver: Receiver, script: Script, at_once: Callable[..., list[Any]]
) -> None:
    """The publisher saw it tripped; when it committed, it was active again."""
    from django.db import transaction

    subscription = tripped(send, receiver, script)
    with transaction.atomic():
        publish("test.meanwhile", {})
        at_once(lambda _: circuit.reset([subscription.pk]), 1)
    assert statuses(subscription) == {"failed": 5, "pending": 3, "held": 1}
    assert sweep().released == 1
    assert statuses(subscription) == {"failed": 5, "pending": 4}


def test_a_large_backlog_is_held_and_released_in_batches(
    send: Send, monkeypatch: pytest.MonkeyPatch, ordered: list[Any]
) -> None:
    subscription = make_subscription()
    publish_numbered(25)
    monkeypatch.setattr("deliveries.holding.hold.__defaults__", (10,))
    monkeypatch.setattr("deliveries.holding.release.__defaults__", (10,))
    monkeypatch.setattr("deliveries.keeping.sweep.BATCH", 10)
    circuit.pause([subscription.pk])
    assert statuses(subscription) == {"held": 10, "pending": 15}
    sweep()
    assert statuses(subscription) == {"held": 25}
    circuit.reset([subscription.pk])
    assert statuses(subscription) == {"held": 15, "pending": 10}
    sweep()
    assert statuses(subscription) == {"pending": 25}


def test_a_row_that_somebody_locks_does_not_hold_up_the_others(
    sender: Sender, receiver: Receiver, at_once: Callable[..., list[Any]]
) -> None:
    from django.db import transaction

    locked, other = (make_subscription(url=receiver.url) for _ in range(2))
    publish("test.one", {})
    with transaction.atomic():
        Subscription.objects.select_for_update().get(pk=locked.pk)
        thread = threading.Thread(
            target=sender.serve, args=([locked.pk, other.pk],), kwargs={"recovering": True}
        )
        thread.start()
        waiting = threading.Event()
        while statuses(other) != {"succeeded": 1}:
            assert not waiting.wait(0.01)
        assert statuses(locked) == {"pending": 1}
    thread.join(20)
    assert statuses(locked) == {"succeeded": 1}
    assert len(receiver.received) == 2


def test_a_slow_receiver_of_the_signal_holds_up_nobody(
    send: Send, receiver: Receiver, script: Script
) -> None:
    from subscriptions.signals import circuit_tripped

    begun, go_on = threading.Event(), threading.Event()

    def slow(**_: Any) -> None:
        begun.set()
        go_on.wait(20)

    circuit_tripped.connect(slow)
    try:
        tripped(send, receiver, script)
        assert begun.wait(20)
        script.always = None
        other = make_subscription(url=receiver.url, topic_patterns=["other"])
        publish("other", {})
        send(other)
        assert statuses(other) == {"succeeded": 1}
    finally:
        go_on.set()
        circuit_tripped.disconnect(slow)


def test_a_new_url_ends_the_rest_that_the_old_receiver_asked_for(
    send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(3)
    script.answers = [Answer(429, headers={"Retry-After": "86400"})]
    send(subscription)
    with Receiver() as elsewhere:
        subscription.url = elsewhere.url
        subscription.save()
        send(subscription)
        assert len(elsewhere.received) == 2


def test_events_go_out_in_the_order_in_which_they_were_published(
    send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=1)
    publish_numbered(10)
    send(subscription)
    assert [json.loads(one.body)["payload"]["n"] for one in receiver.received] == list(range(10))


def test_no_secret_is_in_a_repr(sender: Sender, receiver: Receiver) -> None:
    import uuid

    from deliveries.claiming.claimer import _decrypt
    from deliveries.claiming.claims import claim
    from deliveries.claiming.memory import BodyMemory

    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    found = claim(
        [subscription.pk], BodyMemory(2**20), _decrypt, token=uuid.uuid4(), failing_too=True
    )
    assert found.lanes[0].secrets[0].startswith("whsec_")
    assert "whsec_" not in repr(found)


def test_a_delivery_of_which_nothing_can_be_written_does_not_take_the_others_along(
    send: Callable[..., None], receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(5)])
    first = Delivery.objects.order_by("id")[0]
    Delivery.objects.filter(pk=first.pk).update(attempt_count=2**31 - 1)
    send(subscription)
    assert statuses(subscription) == {"pending": 1, "succeeded": 4}
    assert Delivery.objects.get(pk=first.pk).status == "pending"


@pytest.mark.usefixtures("sender")
def test_a_sweep_wakes_everybody_before_it_moves_a_large_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    subscription = make_subscription()
    publish_numbered(3)
    Delivery.objects.update(status="held", next_attempt_at=None, held_at=timezone.now())
    other = make_subscription(topic_patterns=["other"])
    publish("other", {})
    monkeypatch.setattr(
        "deliveries.keeping.sweep.wake", lambda ids, **_: done.extend(f"wake {one}" for one in ids)
    )
    release = sweeping.release

    def slow_release(ids: Any) -> int:
        done.append("release")
        release(ids, 1)
        return sweeping.BATCH  # as if there were more

    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(sweeping, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(sweeping, "release", slow_release)
    sweep()
    assert done[0] == f"wake {other.pk}"
    # A batch at a time, until the next sweep is due.
    assert done[1:] == ["release", f"wake {subscription.pk}"] * 2
    assert statuses(subscription) == {"held": 1, "pending": 2}
