"""The Celery tasks. Each may run twice, twice at the same time, or be lost, and does no harm."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from celery import Task, shared_task
from celery.signals import beat_init, worker_ready, worker_shutdown, worker_shutting_down

from deliveries.keeping.housekeeping import expire_held, prune
from deliveries.keeping.sweep import sweep as sweep_once
from deliveries.monitoring.sweeps import mark_sweep
from deliveries.monitoring.workers import Presence
from deliveries.notices.prompting import TASK as TELL
from deliveries.notices.prompting import prompt_if_due
from deliveries.notices.telling import tell_due
from deliveries.notices.watching import watch
from deliveries.sending import pools  # noqa: F401 - connects its signal
from deliveries.sending.sender import sender
from deliveries.waking.queues import DELIVER, SWEEP, TASK
from subscriptions.conf import conf
from subscriptions.database import DATABASE_ERRORS

logger = logging.getLogger(__name__)


@shared_task(bind=True, ignore_result=True, name=TASK)
def deliver(self: Task[Any, None], subscription_ids: Iterable[str] = ()) -> None:
    """Send what is due for these subscriptions (ids as text), and for those of the due set.

    Only a wake-up: the tables say what is to be sent, and which process sends it.
    The worker's thread is given back at once; the process's sender goes on without it, and
    listens for further wake-ups until none came for some seconds. From the queue `deliver`,
    subscriptions that are failing are passed on to `recover`. Called in the caller's own process
    (`apply`, `task_always_eager`), it returns once all is sent and settled.
    """
    queue = (self.request.delivery_info or {}).get("routing_key")
    ids = [UUID(text) for text in dict.fromkeys(subscription_ids)]
    if self.request.is_eager:
        sender().serve(ids, recovering=True)
    else:
        sender().take(ids, recovering=queue != DELIVER)


# A sweep that moves a large backlog may last until the next one is due; those that come meanwhile
# would each take a thread and a connection.
_sweeping = threading.Lock()


@shared_task(ignore_result=True, name=SWEEP)
def sweep() -> None:
    """Wake every subscription with due work and no wake-up; one sweep at a time in a process."""
    if not _sweeping.acquire(blocking=False):
        return
    try:
        sweep_once()
        mark_sweep()
        prompt_if_due()
    except DATABASE_ERRORS as error:
        logger.warning("no sweep this time, the database is unreachable: %s", error)
    finally:
        _sweeping.release()


@shared_task(ignore_result=True)
def housekeeping() -> None:
    """Expire what is held for too long, and remove what is past its time; see `housekeeping`."""
    try:
        expire_held()
        watch()
        prune()
    except DATABASE_ERRORS as error:
        logger.warning("no housekeeping this time, the database is unreachable: %s", error)


@shared_task(ignore_result=True, name=TELL)
def tell() -> None:
    """Tell notices that are due; see `deliveries.notices`. What is left is for the next sweep."""
    try:
        tell_due()
    except DATABASE_ERRORS as error:
        logger.warning("no notices this time, the database is unreachable: %s", error)


_presence: Presence | None = None


@worker_ready.connect
def _say_it_is_there(sender: Any, **_: Any) -> None:
    """`sender` is the consumer."""
    global _presence
    _presence = Presence(sender.hostname, sender.app.amqp.queues.consume_from)


@worker_shutting_down.connect
def _stop_sending(**_: Any) -> None:
    sender().stop()


@worker_shutdown.connect
def _finish_sending(**_: Any) -> None:
    if _presence is not None:
        _presence.end()
    if not sender().drain(conf().request_timeout + 2):
        logger.warning("some requests were still in flight when the worker ended")


@beat_init.connect
def _end_beat_on_signals(sender: Any, **_: Any) -> None:
    """Beat ends on SIGTERM and Ctrl-C, after the tick that is under way.

    Celery's own handler raises SystemExit, wherever beat is just then: where that is a callback,
    Python swallows the exception, and beat goes on for ever.
    """

    def end(number: int, _: Any) -> None:
        sender.stop()
        # The tick may hang, with a database that does not answer: a second signal ends it.
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, end)
