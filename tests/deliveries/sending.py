"""What the tests of sending share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.utils import timezone

from deliveries import NewEvent, publish_many
from deliveries.models import Delivery, Lane
from deliveries.sending.sender import Sender
from subscriptions.models import Subscription
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Receiver

Send = Callable[..., None]


def make_due(**which: Any) -> None:
    """Let the time of every pending retry, and every lane's rest, be over."""
    Delivery.objects.filter(status="pending", **which).update(next_attempt_at=timezone.now())
    Lane.objects.update(resume_at=None)


def publish_numbered(count: int) -> None:
    publish_many([NewEvent(topic="test.one", payload={"n": n}) for n in range(count)])


def the_delivery() -> Delivery:
    return Delivery.objects.get()


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
