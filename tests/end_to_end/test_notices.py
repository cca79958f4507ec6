"""Notices when processes die: told once, and none is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from django.db import connection, transaction

from deliveries import publish
from deliveries.models import Delivery, Event
from subscriptions.models import AuditEntry, Subscription
from tests.end_to_end.conftest import Workers, eventually
from tests.factories import make_subscription
from tests.mail import MailServer
from webhooks_project.receiver import Answer, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

TRIPPED = "system.webhooks.subscription.tripped"
SHORT = {"request_timeout": "1", "time_slice": "1"}


@pytest.fixture
def gone() -> Iterator[Receiver]:
    """Answers 410, which trips at once."""
    with Receiver(respond=lambda _: Answer(410)) as running:
        yield running


@pytest.fixture
def pager() -> Iterator[Receiver]:
    with Receiver() as running:
        make_subscription(name="pager", url=running.url, topic_patterns=["system.>"])
        yield running


@pytest.fixture
def mails(environment: dict[str, str]) -> Iterator[MailServer]:
    with MailServer() as server:
        environment["EMAIL_URL"] = server.url
        environment["WEBHOOKS_NOTICE_EMAILS"] = "ops@example.com"
        yield server


def entries() -> list[AuditEntry]:
    return list(AuditEntry.objects.filter(action="tripped"))


def check_told_once(mails: MailServer, pager: Receiver) -> None:
    eventually(lambda: bool(entries()) and entries()[0].notified_at, "the notice")
    eventually(lambda: len(pager.received) == 1, "the event at the pager")
    (entry,) = entries()
    assert entry.told == ["event", "signal", "mail"]
    assert Event.objects.filter(topic=TRIPPED).count() == 1
    assert Delivery.objects.filter(event__topic=TRIPPED).count() == 1
    assert [message["Subject"] for message in mails.messages] == [
        "[webhooks] billing has tripped; its deliveries are held"
    ]


def test_a_worker_that_dies_at_the_moment_of_the_trip_loses_no_notice(
    workers: Workers,
    gone: Receiver,
    pager: Receiver,
    mails: MailServer,
    broker: redis.Redis,
) -> None:
    make_subscription(name="billing", url=gone.url)
    # It trips circuits, and tells nothing.
    first = workers.worker("deliver,recover", **SHORT)
    publish("test.one", {})
    eventually(entries, "the trip")
    workers.kill(first)
    # The task that it may have sent is lost as well.
    broker.delete("maintenance")
    (entry,) = entries()
    assert entry.notified_at is None
    assert mails.messages == []
    for _ in range(2):
        workers.worker(**SHORT)
    workers.beat(**SHORT)
    check_told_once(mails, pager)


def test_a_worker_that_dies_before_its_trip_is_committed_has_told_nothing(
    workers: Workers, gone: Receiver, pager: Receiver, mails: MailServer
) -> None:
    billing = make_subscription(name="billing", url=gone.url)
    first = workers.worker(**SHORT)
    with transaction.atomic(), connection.cursor() as cursor:
        # The entry cannot be written, and so the trip is not.
        cursor.execute("LOCK TABLE subscriptions_auditentry IN SHARE MODE")
        publish_elsewhere(billing)
        assert gone.wait_for(1, 30)
        eventually(_waits_for_the_table, "the settlement waiting for the table")
        workers.kill(first)
        assert Subscription.objects.get(pk=billing.pk).state == "active"
    assert entries() == []
    workers.worker(**SHORT)
    workers.beat(**SHORT)
    check_told_once(mails, pager)
    assert Subscription.objects.get(pk=billing.pk).state == "tripped"


def publish_elsewhere(subscription: Subscription) -> None:
    """Publish and commit, though this thread has a transaction open."""
    import threading

    def run() -> None:
        try:
            publish("test.one", {})
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)


def _waits_for_the_table() -> bool:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_locks "
            "WHERE NOT granted AND relation = 'subscriptions_auditentry'::regclass"
        )
        return bool(cursor.fetchone()[0])
