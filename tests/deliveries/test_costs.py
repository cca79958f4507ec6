"""What an event costs, in counts that do not depend on how fast the machine is.

A number that goes up here is a slower product; the benchmark says by how much.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from deliveries import NewEvent, publish, publish_many
from deliveries.models import Delivery
from deliveries.sending import sender as sending
from deliveries.sending.sender import Sender
from deliveries.settling.settle import settle
from tests.factories import make_subscription, statuses
from webhooks_project.receiver import Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def numbered(count: int) -> list[NewEvent]:
    return [NewEvent(topic="test.one", payload={"n": n}) for n in range(count)]


# Publishing


@pytest.mark.usefixtures("ordered")
def test_an_event_is_published_in_one_statement_and_so_are_a_hundred() -> None:
    for _ in range(20):
        make_subscription()
    with transaction.atomic():
        with CaptureQueriesContext(connection) as one:
            publish("test.one", {})
        with CaptureQueriesContext(connection) as many:
            publish_many(numbered(100))
    assert (len(one), len(many)) == (1, 1)
    assert Delivery.objects.count() == 20 * 101


# Settling


class Counted:
    """Stands before `settle`: how many results each call had, and how many statements it took."""

    def __init__(self, hold_first: threading.Event) -> None:
        self.calls: list[tuple[int, int]] = []
        self._hold_first = hold_first

    def __call__(self, results: Sequence[Any], ends: Sequence[Any], **more: Any) -> Any:
        if not self.calls and not self._hold_first.wait(30):
            raise AssertionError("the other results never came")
        statements = 0

        def count(execute: Any, *arguments: Any) -> Any:
            nonlocal statements
            statements += 1
            return execute(*arguments)

        with connection.execute_wrapper(count):
            settled = settle(results, ends, **more)
        self.calls.append((len(results), statements))
        return settled


@pytest.mark.usefixtures("ordered")
def test_successes_that_finish_together_are_settled_in_one_statement(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=10)
    publish_many(numbered(10))
    all_answered = threading.Event()
    counted = Counted(all_answered)
    monkeypatch.setattr(sending, "settle", counted)
    hand_over, answered = sender._settlements.put, []

    def note(item: Any, **more: Any) -> None:
        hand_over(item, **more)
        answered.append(item)
        if len(answered) == 10:
            all_answered.set()

    monkeypatch.setattr(sender._settlements, "put", note)
    sender.serve([subscription.pk], recovering=False)
    assert statuses(subscription) == {"succeeded": 10}
    # The first call holds what had come when it began, the second all the rest.
    assert sum(results for results, _ in counted.calls[:2]) == 10
    assert max(statements for _, statements in counted.calls) == 1


@pytest.mark.usefixtures("ordered")
def test_a_lone_delivery_is_written_down_with_the_end_of_its_lane(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    at_once = threading.Event()
    at_once.set()
    counted = Counted(at_once)
    monkeypatch.setattr(sending, "settle", counted)
    sender.serve([subscription.pk], recovering=False)
    assert statuses(subscription) == {"succeeded": 1}
    assert counted.calls == [(1, 1)], "one statement for the result and the lane"


# What grows


def entries(index: str) -> int:
    """How many rows the index points to."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE) deliveries_delivery")
        cursor.execute("SELECT reltuples::bigint FROM pg_class WHERE relname = %s", [index])
        (found,) = cursor.fetchone()
    return int(found)


def test_the_index_of_what_is_due_holds_nothing_that_is_finished(
    send: Callable[..., None], receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url, max_in_flight=50)
    publish_many(numbered(200))
    assert entries("delivery_due") == 200
    send(subscription)
    assert statuses(subscription) == {"succeeded": 200}
    # Somebody's old snapshot, such as autovacuum's, may keep dead entries for a moment.
    deadline = time.monotonic() + 30
    while entries("delivery_due") and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert entries("delivery_due") == 0


def indexes_of(table: str) -> list[str]:
    """The indexes that the table's one row is entered in, by their conditions."""
    found = []
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexrelid::regclass::text, coalesce(pg_get_expr(indpred, indrelid), 'true') "
            "FROM pg_index WHERE indrelid = %s::regclass",
            [table],
        )
        for name, condition in cursor.fetchall():
            cursor.execute(f"SELECT {condition} FROM {table}")
            (entered,) = cursor.fetchone()
            if entered:
                found.append(name)
    return found


def test_a_row_that_goes_well_is_entered_in_few_indexes(
    send: Callable[..., None], receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish_many(numbered(1))
    assert len(indexes_of("deliveries_event")) <= 3
    assert len(indexes_of("deliveries_delivery")) <= 4
    send(subscription)
    assert statuses(subscription) == {"succeeded": 1}
    assert len(indexes_of("deliveries_delivery")) <= 4
    assert len(indexes_of("deliveries_attempt")) <= 2
