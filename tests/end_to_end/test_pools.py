"""Celery's pools: those that can send finish what is in flight; the others do not start."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from celery.concurrency import prefork, solo, thread
from celery.concurrency.base import BasePool

from deliveries import publish
from deliveries.models import Attempt, Delivery
from tests.end_to_end.conftest import ROOT, Workers
from tests.factories import make_subscription
from webhooks_project.celery import app
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_a_worker_that_is_told_to_stop_finishes_what_is_in_flight(
    workers: Workers, pool: str
) -> None:
    worker = workers.worker(pool=pool)
    arrived = threading.Event()

    def respond(_: Received) -> Answer:
        arrived.set()
        return Answer(200, delay=2)

    with Receiver(respond=respond) as receiver:
        make_subscription(url=receiver.url)
        publish("test.slow", {})
        assert arrived.wait(30)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
        assert len(receiver.received) == 1
    assert [one.status_code for one in Attempt.objects.all()] == [200]
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_the_default_pool_is_refused_with_the_option_that_can(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "webhooks_project", "worker", "-Q", "deliver"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "prefork" in done.stderr
    assert "--pool threads" in done.stderr
    assert "Traceback" not in done.stderr


class Greenlets(BasePool):
    """Stands in for gevent's and eventlet's, which are no requirement of ours."""


@pytest.mark.parametrize("pool", [prefork.TaskPool, Greenlets, "prefork"])
@pytest.mark.parametrize("queue", ["deliver", "recover"])
def test_a_pool_that_cannot_send_may_not_serve_our_queues(pool: object, queue: str) -> None:
    with pytest.raises(SystemExit, match="--pool threads"):
        start(pool, queue)


@pytest.mark.parametrize(
    ("pool", "queue"),
    [(thread.TaskPool, "deliver"), (solo.TaskPool, "recover"), (prefork.TaskPool, "celery")],
)
def test_an_applications_own_worker_may_have_any_pool(pool: object, queue: str) -> None:
    start(pool, queue)


def start(pool: object, queue: str) -> None:
    from deliveries.sending.pools import refuse_pools_that_cannot_send

    queues = SimpleNamespace(consume_from={queue: object()})
    worker = SimpleNamespace(
        pool_cls=pool, app=SimpleNamespace(amqp=SimpleNamespace(queues=queues), main=app.main)
    )
    refuse_pools_that_cannot_send(worker)
