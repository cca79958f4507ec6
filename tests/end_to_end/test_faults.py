"""Parts that die: after recovery every accepted event has arrived.

Duplicates are what at-least-once costs: no more than were in flight when the part died.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import psycopg
import pytest
import redis
from django.db import connection

from deliveries import NewEvent, publish, publish_many
from deliveries.models import Attempt, Delivery
from subscriptions.models import Subscription
from tests.conftest import empty_redis
from tests.end_to_end.conftest import TIMEOUT, Workers, eventually
from tests.factories import make_subscription
from webhooks_project.receiver import Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

EVENTS = 200
SUBSCRIPTIONS = 5
IN_FLIGHT = 10


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def subscriptions(receiver: Receiver) -> list[Subscription]:
    return [
        make_subscription(url=receiver.url, headers={"X-Lane": str(n)}, max_in_flight=IN_FLIGHT)
        for n in range(SUBSCRIPTIONS)
    ]


def publish_all(count: int = EVENTS) -> set[str]:
    return {
        event.id
        for event in publish_many(
            [NewEvent(topic="test.fault", payload={"n": n}) for n in range(count)]
        )
    }


def arrivals(receiver: Receiver) -> Counter[tuple[str, str]]:
    return Counter((one.header("X-Lane"), one.id) for one in receiver.received)


def all_settled(count: int = EVENTS * SUBSCRIPTIONS) -> bool:
    return Delivery.objects.filter(status="succeeded").count() == count


def check_everything_arrived(receiver: Receiver, event_ids: set[str]) -> int:
    """Every event at every subscription; returns the number of duplicates."""
    seen = arrivals(receiver)
    for number in range(SUBSCRIPTIONS):
        assert {one for lane, one in seen if lane == str(number)} == event_ids
    return seen.total() - len(seen)


def test_a_worker_killed_in_the_middle_of_a_thousand_deliveries_loses_none(
    workers: Workers, receiver: Receiver, subscriptions: list[Subscription]
) -> None:
    # A request that takes at most a second and a slice of one make leases of twelve seconds.
    short = {"request_timeout": "1", "time_slice": "1"}
    first = workers.worker(**short)
    event_ids = publish_all()
    assert receiver.wait_for(EVENTS, TIMEOUT)
    workers.kill(first)
    # The kernel still has requests of the dead one.
    eventually(lambda: not receiver._connections, "the receiver having read what was sent")
    at_death = len(receiver.received)
    assert at_death < EVENTS * SUBSCRIPTIONS, "the worker was done before it could be killed"
    settled = Delivery.objects.filter(status="succeeded").count()
    workers.worker(**short)
    workers.beat(**short)
    eventually(all_settled, "everything being delivered after the worker's death")
    duplicates = check_everything_arrived(receiver, event_ids)
    # What had arrived and was not yet written down.
    assert duplicates <= at_death - settled
    assert duplicates <= IN_FLIGHT * SUBSCRIPTIONS
    unknown = Attempt.objects.filter(outcome="unknown")
    assert unknown.count() >= duplicates
    assert not Delivery.objects.exclude(lease_until=None).exists()


def test_a_flushed_broker_loses_nothing(
    workers: Workers,
    receiver: Receiver,
    subscriptions: list[Subscription],
    broker: redis.Redis,
) -> None:
    event_ids = publish_all()
    assert broker.llen("deliver") == 1, "one message, and the ids beside it"
    empty_redis().close()
    workers.worker()
    workers.beat()
    eventually(all_settled, "everything being delivered after the flush")
    event_ids |= publish_all()
    empty_redis().close()
    eventually(lambda: all_settled(2 * EVENTS * SUBSCRIPTIONS), "delivery after a flush at work")
    assert check_everything_arrived(receiver, event_ids) == 0


def test_a_database_that_is_away_and_comes_back_loses_nothing_and_trips_nothing(
    workers: Workers, receiver: Receiver, subscriptions: list[Subscription]
) -> None:
    workers.worker()
    workers.beat()
    event_ids = publish_all()
    assert receiver.wait_for(EVENTS, TIMEOUT)
    name = connection.settings_dict["NAME"]
    host = connection.settings_dict["HOST"]
    connection.close()
    # What a restart looks like from here, for this database alone: other tests use the server.
    with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        cut = server.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
            [name],
        ).fetchone()
        assert cut is not None
        assert cut[0] > 0
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(host=host, user="postgres", dbname=name)
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    eventually(_can_connect, "the database being back")
    event_ids.add(publish("test.fault", {"after": True}).id)
    eventually(
        lambda: all_settled((EVENTS + 1) * SUBSCRIPTIONS),
        "everything being delivered after the restart",
    )
    duplicates = check_everything_arrived(receiver, event_ids)
    assert duplicates <= IN_FLIGHT * SUBSCRIPTIONS
    for subscription in subscriptions:
        subscription.refresh_from_db()
        assert (subscription.state, subscription.consecutive_failures) == ("active", 0)


def _can_connect() -> bool:
    from django.db import OperationalError

    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except OperationalError:
        connection.close()
        return False
    return True
