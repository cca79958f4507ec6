"""Which subscriptions an event is for, on real PostgreSQL: after every kind of change of patterns,
and with no more read than matches, whatever PostgreSQL knows of the tables."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deliveries import NewEvent, publish, publish_many
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription
from tests.topics import matches, patterns, topics

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("ordered")]


def new(*patterns: str) -> Subscription:
    return Subscription(
        name=f"receiver {uuid.uuid4()}",
        url="https://receiver.example/hook",
        topic_patterns=list(patterns),
    )


def subscribe(*patterns: str) -> uuid.UUID:
    subscription = new(*patterns)
    subscription.save(force_insert=True)
    return subscription.pk


def recipients(event: Event) -> set[uuid.UUID]:
    found = list(
        Delivery.objects.filter(event_id=event.id).values_list("subscription_id", flat=True)
    )
    assert len(found) == len(set(found)), "one delivery, however many patterns match"
    return set(found)


def matched(topic: str) -> set[uuid.UUID]:
    return recipients(publish(topic, {}))


def sql(statement: str, *params: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)
        return cursor.fetchall() if cursor.description else []


def elsewhere(work: Callable[[], Any]) -> Any:
    """The result of `work` in another thread, so on another connection."""

    def closing() -> Any:
        try:
            return work()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(closing).result(timeout=30)


@contextmanager
def rolled_back() -> Iterator[None]:
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


# The rule, and the statement that runs


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(
    st.lists(st.lists(patterns, max_size=4), max_size=6),
    st.lists(topics, min_size=1, max_size=5),
)
def test_the_statement_agrees_with_the_rule(wanted: list[list[str]], asked: list[str]) -> None:
    with rolled_back():
        made = Subscription.objects.bulk_create([new(*mine) for mine in wanted])
        events = publish_many([NewEvent(topic=topic, payload={}) for topic in asked])
        events.append(publish(asked[0], {}))
        for event in events:
            assert recipients(event) == {
                subscription.pk
                for subscription in made
                if any(matches(pattern, event.topic) for pattern in subscription.topic_patterns)
            }


def test_the_longest_topic_is_matched() -> None:
    longest = ".".join("abcdefghij")
    wanted = [longest, ".".join("*" * 10), ".".join("*" * 9) + ".>", "a.*.c.>", ">"]
    found = {subscribe(pattern) for pattern in wanted}
    subscribe(".".join("*" * 9), "b.>")
    assert matched(longest) == found


# Every way to change patterns


def test_a_created_subscription_is_matched_at_once() -> None:
    assert matched("order.created") == set()
    one = subscribe("order.*")
    assert matched("order.created") == {one}
    two = subscribe(">")
    assert matched("order.created") == {one, two}
    assert matched("user.created") == {two}


def test_a_changed_pattern_is_matched_at_once() -> None:
    subscription = new("order.*")
    subscription.save()
    assert matched("order.created") == {subscription.pk}
    subscription.topic_patterns = ["user.*"]
    subscription.save()
    assert matched("order.created") == set()
    assert matched("user.created") == {subscription.pk}


def test_a_deleted_subscription_is_not_matched() -> None:
    kept, gone = subscribe("order.*"), subscribe("order.*")
    assert matched("order.created") == {kept, gone}
    Subscription.objects.filter(pk=gone).delete()
    assert matched("order.created") == {kept}


def test_bulk_create_and_update_count() -> None:
    subscriptions = [new(f"tenant.{number}.>") for number in range(50)]
    Subscription.objects.bulk_create(subscriptions)
    assert matched("tenant.7.order") == {subscriptions[7].pk}
    Subscription.objects.filter(topic_patterns=["tenant.7.>"]).update(topic_patterns=["other"])
    assert matched("tenant.7.order") == set()
    assert matched("other") == {subscriptions[7].pk}
    for subscription in subscriptions:
        subscription.topic_patterns = ["all"]
    Subscription.objects.bulk_update(subscriptions, ["topic_patterns"])
    assert matched("all") == {subscription.pk for subscription in subscriptions}


def test_sql_by_hand_counts() -> None:
    one = subscribe("order.*")
    assert matched("user.created") == set()
    sql("""UPDATE subscriptions_subscription SET topic_patterns = '["user.>"]'""")
    assert matched("user.created") == {one}
    other = uuid.uuid4()
    sql("DELETE FROM subscriptions_signingsecret")
    sql("UPDATE subscriptions_subscription SET id = %s", other)
    assert matched("user.created") == {other}
    sql("TRUNCATE subscriptions_subscription CASCADE")
    assert matched("user.created") == set()


# Transactions


def test_a_transaction_sees_its_own_changes_and_nobody_else_does_before_the_commit() -> None:
    kept, changed = subscribe("order.*"), subscribe("order.*")
    with transaction.atomic():
        added = subscribe("order.created")
        Subscription.objects.filter(pk=changed).update(topic_patterns=["user.*"])
        assert matched("order.created") == {kept, added}
        assert elsewhere(lambda: matched("order.created")) == {kept, changed}
    assert elsewhere(lambda: matched("order.created")) == {kept, added}


def test_what_is_rolled_back_leaves_no_phantom() -> None:
    one = subscribe("order.*")
    with transaction.atomic():
        with rolled_back():
            subscribe("order.created")
            Subscription.objects.filter(pk=one).update(topic_patterns=["user.*"])
            assert one not in matched("order.created")
        assert matched("order.created") == {one}
    assert matched("user.created") == set()


def test_a_change_by_another_connection_is_seen_amid_a_transaction() -> None:
    one = subscribe("order.*")
    with transaction.atomic():
        assert matched("order.created") == {one}
        two = elsewhere(lambda: subscribe("order.*"))
        assert matched("order.created") == {one, two}


def test_a_subscription_that_is_being_edited_blocks_neither_others_nor_publish() -> None:
    edited, other = subscribe("order.*"), subscribe("order.*")

    def work() -> set[uuid.UUID]:
        sql("SET lock_timeout = '5s'")
        Subscription.objects.filter(pk=other).update(topic_patterns=["order.created"])
        added = subscribe("order.*")
        assert matched("order.created") == {edited, other, added}
        return {other, added}

    with transaction.atomic():
        Subscription.objects.filter(pk=edited).update(topic_patterns=["user.*"])
        found = elsewhere(work)
    assert matched("order.created") == found


def test_threads_that_publish_while_others_subscribe_miss_nothing() -> None:
    committed: list[uuid.UUID] = []
    lock = threading.Lock()
    start = threading.Barrier(6)

    def writer() -> None:
        start.wait(timeout=10)
        for _ in range(15):
            made = subscribe("order.*")
            with lock:
                committed.append(made)

    def reader() -> None:
        start.wait(timeout=10)
        for _ in range(40):
            with lock:
                before = set(committed)
            assert matched("order.created") >= before

    def closing(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(closing, work) for work in (writer, writer, *[reader] * 4)]
        for job in jobs:
            job.result(timeout=60)
    assert matched("order.created") == set(committed)
    assert len(committed) == 30


# What was written past validation


@pytest.mark.parametrize(
    "stored",
    [
        "[]",
        '["order.>.created"]',
        '[7, null, ["order.created"], {"order.created": 1}, "order..created", ""]',
        '["order.created\\n"]',
        '["order.*\\n>"]',
        '["{}"]'.format(".".join("*" * 40)),
    ],
)
def test_a_bad_stored_pattern_matches_nothing_and_breaks_nothing(stored: str) -> None:
    good, bad = subscribe("order.*"), subscribe("order.*")
    change = "UPDATE subscriptions_subscription SET topic_patterns = %s::jsonb WHERE id = %s"
    sql(change, stored, bad)
    assert matched("order.created") == {good}
    sql(change.replace("%s::jsonb", "%s::jsonb || '[\"order.>\"]'"), stored, bad)
    assert matched("order.created") == {good, bad}


@pytest.mark.parametrize("stored", ['"order.created"', "null", '{"order.created": 1}', "7"])
def test_the_database_refuses_patterns_that_are_no_list(stored: str) -> None:
    one = subscribe("order.*")
    with pytest.raises(IntegrityError, match="subscription_patterns_are_a_list"):
        sql("UPDATE subscriptions_subscription SET topic_patterns = %s", stored)
    assert matched("order.created") == {one}


@pytest.mark.parametrize("patterns", ["order.>", {"order.>": 1}, 7, None])
def test_patterns_that_are_no_list_are_refused_with_a_sentence(patterns: Any) -> None:
    made = new("order.*")
    made.save()
    wrong = new()
    wrong.topic_patterns = made.topic_patterns = patterns
    ways: list[Callable[[], Any]] = [
        wrong.save,
        made.save,
        lambda: Subscription.objects.create(
            name="x", url="https://a.example/", topic_patterns=patterns
        ),
        lambda: Subscription.objects.bulk_create([wrong]),
        lambda: Subscription.objects.bulk_update([made], ["topic_patterns"]),
        lambda: Subscription.objects.update(topic_patterns=patterns),
    ]
    for way in ways:
        with pytest.raises(TypeError, match=r"topic_patterns is a list of patterns, such as"):
            way()
    assert matched("order.created") == {made.pk}


# What is read

MANY = """
INSERT INTO subscriptions_subscription (
    id, name, url, topic_patterns, headers, max_in_flight, recovery, enabled,
    consecutive_failures, last_error, circuit_epoch, probe_count, created_at, updated_at
)
SELECT gen_random_uuid(), 'filling ' || n, 'https://filling.example/' || n,
    jsonb_build_array('filling.' || n, 'filling.' || n %% 10 || '.>'),
    '{}', 10, 'manual', true, 0, '', 0, 0, now(), now()
FROM generate_series(1, %s) n
"""
LANES = """
INSERT INTO deliveries_lane (subscription_id, wake_again, "window", failures)
SELECT id, false, 10, 0 FROM subscriptions_subscription ON CONFLICT DO NOTHING
"""
TABLES = ("subscriptions_subscription", "deliveries_lane")


def rows_read(work: Callable[[], Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Rows that the call read by an index, and from end to end, by table."""
    with transaction.atomic():
        before = _counters()
        work()
        after = _counters()
    return tuple(  # type: ignore[return-value]
        {table: after[table][kind] - before[table][kind] for table in TABLES} for kind in (0, 1)
    )


def _counters() -> dict[str, tuple[int, int]]:
    return {
        table: (by_index, in_scans)
        for table, by_index, in_scans in sql(
            "SELECT relname, idx_tup_fetch, seq_tup_read FROM pg_stat_xact_user_tables "
            "WHERE relname = ANY(%s)",
            list(TABLES),
        )
    }


@pytest.mark.parametrize("known", ["never analysed", "analysed while empty", "analysed with one"])
def test_as_many_rows_are_read_as_match_whatever_postgresql_knows(known: str) -> None:
    """With a plan that was made when there was next to nothing, on the same connection."""
    if known == "analysed with one":
        subscribe("filling.0.>")
    if known.startswith("analysed"):
        sql(LANES)
        sql(f"VACUUM (ANALYZE) {', '.join(TABLES)}")
    for _ in range(10):
        publish("filling.0.x", {})
        publish_many([NewEvent(topic="filling.0.x", payload={})] * 2)
    sql(MANY, 20_000)
    sql(LANES)
    for topic, count in (("filling.0.x", 2000), ("filling.7", 1), ("other", 0)):
        count += known == "analysed with one" and topic == "filling.0.x"
        by_index, in_scans = rows_read(lambda topic=topic: publish(topic, {}))
        assert in_scans == dict.fromkeys(TABLES, 0)
        assert by_index == dict.fromkeys(TABLES, count)
    many = [NewEvent(topic=f"filling.{n}", payload={}) for n in range(1, 51)]
    by_index, in_scans = rows_read(lambda: publish_many(many * 4))
    assert in_scans == dict.fromkeys(TABLES, 0)
    assert by_index == dict.fromkeys(TABLES, 50)
    assert Delivery.objects.filter(event__topic="filling.50").count() == 4


def test_a_change_of_the_circuit_needs_no_entry_in_the_index_of_patterns() -> None:
    """A heap-only update: the row's other indexes are left alone too."""
    one = subscribe(*(f"order.{n}" for n in range(20)))
    with transaction.atomic():
        for _ in range(5):
            sql("UPDATE subscriptions_subscription SET consecutive_failures = 1 WHERE id = %s", one)
        ((updates, heap_only),) = sql(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = %s",
            TABLES[0],
        )
    assert updates == heap_only == 5


def test_the_migration_makes_lists_of_what_was_none_and_can_be_undone() -> None:
    try:
        call_command("migrate", "subscriptions", "0003", verbosity=0)
        sql(MANY, 3)
        for number, stored in enumerate(['"order.>"', '{"order.>": 1}', '["order.*"]'], start=1):
            sql(
                "UPDATE subscriptions_subscription SET topic_patterns = %s WHERE name = %s",
                stored,
                f"filling {number}",
            )
    finally:
        call_command("migrate", verbosity=0)
    found = dict(Subscription.objects.values_list("name", "topic_patterns"))
    assert found == {
        "filling 1": ["order.>"],
        "filling 2": [{"order.>": 1}],
        "filling 3": ["order.*"],
    }
    ids = dict(Subscription.objects.values_list("name", "id"))
    assert matched("order.created") == {ids["filling 1"], ids["filling 3"]}
