"""Celery's pools that can send. The others are refused when a worker starts."""

from __future__ import annotations

from typing import Any

from celery.concurrency import get_implementation, solo, thread
from celery.signals import worker_init

from deliveries.waking.queues import DELIVER, RECOVER


@worker_init.connect
def refuse_pools_that_cannot_send(sender: Any, **_: Any) -> None:
    """End the worker with a sentence if it serves our queues by prefork, gevent or eventlet.

    Requests are made by threads beside the tasks. The processes of prefork end without waiting
    for them, so that what is in flight is lost and sent again; under gevent and eventlet each
    greenlet opens a database connection of its own. A worker for other queues may have any pool.
    """
    served = {DELIVER, RECOVER} & set(sender.app.amqp.queues.consume_from)
    pool = get_implementation(sender.pool_cls)
    if served and not issubclass(pool, (thread.TaskPool, solo.TaskPool)):
        raise SystemExit(
            f"A worker with the pool {pool.__module__.rpartition('.')[2]!r} cannot send webhooks: "
            "stopping it drops the requests in flight. Start it with `--pool threads`: "
            f"celery -A {sender.app.main} worker --pool threads --concurrency 128 "
            f"--queues {','.join(sorted(served))}"
        )
