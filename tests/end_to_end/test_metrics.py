"""The metrics say what the tables say, after a run with failures, of several processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from itertools import accumulate

import pytest

from deliveries import NewEvent, publish_many
from deliveries.models import Attempt, Delivery
from deliveries.monitoring import rollups
from deliveries.monitoring import workers as worker_marks
from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS
from deliveries.monitoring.rollups import Traffic
from subscriptions import circuit
from subscriptions.models import Subscription
from tests.deliveries.monitoring.conftest import Samples, Scrape, fresh, scrape  # noqa: F401
from tests.end_to_end.conftest import TIMEOUT, Workers, eventually
from tests.factories import make_subscription
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

EVENTS = 60


class Answers:
    """By the header X-Lane: `well` takes all, `flaky` refuses each event once, and so on."""

    def __init__(self) -> None:
        self._seen: Counter[tuple[str, str]] = Counter()

    def __call__(self, received: Received) -> Answer:
        lane = received.header("X-Lane")
        self._seen[lane, received.id] += 1
        if lane == "flaky":
            return Answer(503 if self._seen[lane, received.id] == 1 else 200)
        return Answer({"well": 200, "refuses": 422, "gone": 410}[lane])


def labelled(name: str, page: Samples) -> dict[str, float]:
    return {labels[0]: value for (key, labels), value in page.items() if key == name}


def buckets(name: str, page: Samples) -> dict[float, float]:
    return {float(bound): value for bound, value in labelled(name, page).items()}


def the_same(page: Samples) -> bool:
    """Whether the counters say what the tables say; the rest follows from them."""
    return page["webhooks_attempt_seconds_count", ()] == Attempt.objects.count()


def rolled_up() -> Traffic:
    return rollups.total(rollups.last_minutes(30))


def test_the_metrics_are_those_of_the_tables_after_a_run_with_failures(
    workers: Workers,
    scrape: Scrape,  # noqa: F811
) -> None:
    with Receiver(respond=Answers()) as receiver:
        lanes = {
            lane: make_subscription(url=receiver.url, headers={"X-Lane": lane})
            for lane in ("well", "flaky", "refuses", "gone")
        }
        # Nobody listens at this address.
        lanes["dead"] = make_subscription(url="http://127.0.0.1:9/")
        # A long way to go for the circuits: this is about what is counted.
        first = workers.worker(circuit_threshold="1000", slow_retries="")
        workers.worker(circuit_threshold="1000", slow_retries="")
        workers.beat()
        publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(EVENTS)])
        eventually(
            lambda: (
                not Delivery.objects.filter(status="pending")
                .exclude(subscription=lanes["dead"])
                .exists()
            ),
            "everything being settled",
        )
        # A process that ends has told what it counted.
        os.killpg(first.pid, signal.SIGTERM)
        first.wait(20)
        circuit.pause([lanes["dead"].pk])
        eventually(lambda: not Delivery.objects.exclude(lease_until=None).exists(), "no request")
        eventually(lambda: the_same(scrape()), "the counts being shared")

    lanes["gone"].refresh_from_db()
    assert lanes["gone"].state == "tripped"
    page = scrape()
    attempts = Counter(Attempt.objects.values_list("outcome", flat=True))
    assert set(attempts) == {"success", "http", "refused"}
    assert labelled("webhooks_attempts_total", page) == attempts

    statuses = Counter(Delivery.objects.values_list("status", flat=True))
    succeeded, failed = statuses["succeeded"], statuses["failed"]
    assert succeeded == 2 * EVENTS
    assert failed > EVENTS
    assert page["webhooks_deliveries_total", ("succeeded",)] == succeeded
    assert page["webhooks_deliveries_total", ("failed",)] == failed
    assert (
        page["webhooks_deliveries_total", ("retried",)]
        == attempts.total() - succeeded - failed
        >= EVENTS
    )
    assert page["webhooks_queue_deliveries", ("held",)] == statuses["held"] > 0

    durations = list(Attempt.objects.values_list("duration_ms", flat=True))
    assert page["webhooks_attempt_seconds_sum", ()] == pytest.approx(sum(durations) / 1000)
    assert buckets("webhooks_attempt_seconds_bucket", page) == {
        **{bound / 1000: sum(one <= bound for one in durations) for bound in ATTEMPT_BOUNDS},
        float("inf"): len(durations),
    }

    arrived = Attempt.objects.filter(outcome="success", number=1, delivery__held_at=None)
    times = [
        (one.started_at - one.delivery.created_at).total_seconds() + one.duration_ms / 1000
        for one in arrived.select_related("delivery")
    ]
    assert len(times) == EVENTS
    # The worker's clock and that of PostgreSQL are compared in a claim, which takes its time.
    assert page["webhooks_arrival_seconds_count", ()] == EVENTS
    assert page["webhooks_arrival_seconds_sum", ()] == pytest.approx(sum(times), abs=0.2 * EVENTS)
    assert set(buckets("webhooks_arrival_seconds_bucket", page)) == {
        *(bound / 1000 for bound in ARRIVAL_BOUNDS),
        float("inf"),
    }

    # The roll-ups say the same: all that was counted, and who it was for.
    eventually(lambda: rolled_up().attempts == len(durations), "the roll-ups being written")
    rolled = rolled_up()
    assert (rolled.succeeded, rolled.failed, rolled.retried, rolled.held) == (
        succeeded, failed, page["webhooks_deliveries_total", ("retried",)], 0,
    )  # fmt: skip
    assert list(accumulate(rolled.attempt_ms)) == [
        *(sum(one <= bound for one in durations) for bound in ATTEMPT_BOUNDS), len(durations),
    ]  # fmt: skip
    assert sum(rolled.arrival_ms) == EVENTS
    for subscription in lanes.values():
        made = Counter(
            Attempt.objects.filter(delivery__subscription=subscription).values_list(
                "outcome", flat=True
            )
        )
        hours = rollups.hourly([subscription.pk], 2)[subscription.pk]
        assert sum(succeeded for _, succeeded, _ in hours) == made["success"]
        assert sum(failed for _, _, failed in hours) == made.total() - made["success"]

    states = Counter(one.state for one in Subscription.objects.all())
    assert (
        {
            labels[0]: value
            for (name, labels), value in page.items()
            if name == "webhooks_subscriptions"
        }
        == states
        == {"active": 3, "paused": 1, "tripped": 1}
    )
    assert page["webhooks_trips_total", ()] == 1
    assert page["webhooks_resets_total", ()] == 0
    circuit.reset([lanes["gone"].pk])
    assert scrape()["webhooks_resets_total", ()] == 1
    assert page["webhooks_wake_ups_total", ("deliver",)] >= 5
    eventually(lambda: scrape().get(("webhooks_sweep_lag_seconds", ()), TIMEOUT) < 5, "a sweep")


def test_a_killed_worker_takes_no_more_than_its_last_seconds_of_statistics_with_it(
    workers: Workers,
) -> None:
    def settled() -> int:
        return Attempt.objects.exclude(outcome="unknown").count()

    with Receiver() as receiver:
        make_subscription(url=receiver.url)
        first = workers.worker()
        publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(EVENTS)])
        eventually(lambda: settled() == EVENTS, "everything being settled")
        eventually(lambda: rolled_up().attempts == EVENTS, "the roll-ups being written")
        publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(EVENTS)])
        eventually(lambda: settled() > EVENTS, "some being settled")
        workers.kill(first)
        killed_at = settled()
        workers.worker()
        workers.beat()
        eventually(
            lambda: not Delivery.objects.exclude(status="succeeded").exists(), "all arriving"
        )
        # What was settled after the kill is counted, and nothing twice.
        eventually(lambda: rolled_up().attempts >= EVENTS + settled() - killed_at, "being written")
        assert rolled_up().attempts <= settled()


def test_workers_are_seen_with_their_queues_while_they_live(workers: Workers) -> None:
    def names() -> dict[str, tuple[str, ...]]:
        return {one.name: one.queues for one in worker_marks.seen()}

    first = workers.worker("deliver")
    second = workers.worker("recover,maintenance")
    eventually(
        lambda: names() == {"w0@test": ("deliver",), "w1@test": ("maintenance", "recover")},
        "both being seen",
    )
    assert {one.pid for one in worker_marks.seen()} == {first.pid, second.pid}
    os.killpg(first.pid, signal.SIGTERM)
    first.wait(20)
    assert list(names()) == ["w1@test"]
