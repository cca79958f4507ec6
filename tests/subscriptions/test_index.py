"""The index against real PostgreSQL: what a match sees after every kind of change."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext

import subscriptions.index
from subscriptions.index import (
    READ_VERSION,
    TopicIndex,
    read_version,
    topic_index,
    trim_changes,
)
from subscriptions.models import Subscription, TopicIndexChange, TopicIndexVersion
from subscriptions.topics import PatternTrie

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def index() -> TopicIndex:
    return TopicIndex()


def subscribe(*patterns: str, name: str | None = None) -> uuid.UUID:
    subscription = new(*patterns, name=name, save=True)
    # So that SQL by hand may do with the row what it likes.
    subscription.secrets.all().delete()
    return subscription.pk


def new(*patterns: str, name: str | None = None, save: bool = False) -> Subscription:
    subscription = Subscription(
        name=name or f"receiver {uuid.uuid4()}",
        url="https://receiver.example/hook",
        topic_patterns=list(patterns),
    )
    if save:
        subscription.save(force_insert=True)
    return subscription


def matched(index: TopicIndex, topic: str) -> set[uuid.UUID]:
    found = index.match(topic, read_version())
    assert len(found) == len(set(found))
    return set(found)


def sql(statement: str, *params: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


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


def test_a_created_subscription_is_seen_by_the_next_match(index: TopicIndex) -> None:
    assert matched(index, "order.created") == set()
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    two = subscribe(">")
    assert matched(index, "order.created") == {one, two}
    assert matched(index, "user.created") == {two}


def test_a_changed_pattern_is_seen_by_the_next_match(index: TopicIndex) -> None:
    subscription = new("order.*", save=True)
    assert matched(index, "order.created") == {subscription.pk}
    subscription.topic_patterns = ["user.*"]
    subscription.save()
    assert matched(index, "order.created") == set()
    assert matched(index, "user.created") == {subscription.pk}


def test_a_deleted_subscription_is_not_matched(index: TopicIndex) -> None:
    kept, gone = subscribe("order.*"), subscribe("order.*")
    assert matched(index, "order.created") == {kept, gone}
    Subscription.objects.filter(pk=gone).delete()
    assert matched(index, "order.created") == {kept}


def test_bulk_create_and_update_count(index: TopicIndex) -> None:
    subscriptions = [new(f"tenant.{number}.>") for number in range(50)]
    Subscription.objects.bulk_create(subscriptions)
    assert matched(index, "tenant.7.order") == {subscriptions[7].pk}
    Subscription.objects.filter(topic_patterns=["tenant.7.>"]).update(topic_patterns=["other"])
    assert matched(index, "tenant.7.order") == set()
    assert matched(index, "other") == {subscriptions[7].pk}
    for subscription in subscriptions:
        subscription.topic_patterns = ["all"]
    Subscription.objects.bulk_update(subscriptions, ["topic_patterns"])
    assert matched(index, "all") == {subscription.pk for subscription in subscriptions}


def test_sql_by_hand_counts(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "user.created") == set()
    sql("""UPDATE subscriptions_subscription SET topic_patterns = '["user.>"]'""")
    assert matched(index, "user.created") == {one}
    other = uuid.uuid4()
    sql("UPDATE subscriptions_subscription SET id = %s", other)
    assert matched(index, "user.created") == {other}
    sql("DELETE FROM subscriptions_subscription")
    assert matched(index, "user.created") == set()


def test_a_truncated_table_matches_nothing(index: TopicIndex) -> None:
    subscribe("order.*")
    assert matched(index, "order.created")
    sql("TRUNCATE subscriptions_subscription CASCADE")
    assert matched(index, "order.created") == set()
    again = subscribe("order.*")
    assert matched(index, "order.created") == {again}


def test_the_index_survives_a_flush_of_all_tables(index: TopicIndex) -> None:
    subscribe("order.*")
    assert matched(index, "order.created")
    sql(
        "TRUNCATE subscriptions_subscription, subscriptions_topicindexversion, "
        "subscriptions_topicindexchange RESTART IDENTITY CASCADE"
    )
    assert matched(index, "order.created") == set()
    again = subscribe("order.*")
    assert matched(index, "order.created") == {again}


def test_without_its_version_row_the_index_is_slower_but_right(index: TopicIndex) -> None:
    one = subscribe("order.*")
    TopicIndexVersion.objects.all().delete()
    assert matched(index, "order.created") == {one}
    two = subscribe("order.*")
    assert matched(index, "order.created") == {one, two}


def test_housekeeping_brings_a_lost_version_row_back(index: TopicIndex) -> None:
    one = subscribe("order.*")
    TopicIndexVersion.objects.all().delete()
    trim_changes()
    assert matched(index, "order.created") == {one}
    with CaptureQueriesContext(connection) as queries:
        assert matched(index, "order.created") == {one}
    assert len(queries) == 1  # read_version() alone


def test_nothing_is_asked_while_nothing_changed(index: TopicIndex) -> None:
    one = subscribe("order.*")
    seen = read_version()
    assert index.match("order.created", seen) == [one]
    with CaptureQueriesContext(connection) as queries:
        for _ in range(100):
            assert index.match("order.created", seen) == [one]
    assert len(queries) == 0


def test_a_circuit_update_makes_no_new_version(index: TopicIndex) -> None:
    one = subscribe("order.*")
    before = read_version()
    Subscription.objects.filter(pk=one).update(
        consecutive_failures=F("consecutive_failures") + 1, last_error="timed out"
    )
    Subscription.objects.filter(pk=one).update(topic_patterns=["order.*"], last_error="again")
    assert read_version() == before


def test_a_statement_that_changed_nothing_makes_no_new_version() -> None:
    subscribe("order.*")
    before = read_version()
    sql("DELETE FROM subscriptions_subscription WHERE false")
    sql("INSERT INTO subscriptions_subscription SELECT * FROM subscriptions_subscription LIMIT 0")
    sql("UPDATE subscriptions_subscription SET topic_patterns = '[]' WHERE false")
    assert read_version() == before


def test_a_refresh_reads_only_what_changed(
    index: TopicIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    Subscription.objects.bulk_create([new(f"tenant.{number}.>") for number in range(200)])
    matched(index, "tenant.1.order")
    added: list[tuple[str, uuid.UUID]] = []
    original = PatternTrie.add

    def counting(self: PatternTrie[uuid.UUID], pattern: str, key: uuid.UUID) -> None:
        added.append((pattern, key))
        original(self, pattern, key)

    monkeypatch.setattr(PatternTrie, "add", counting)
    one, two = subscribe("order.*"), subscribe("order.>")
    with CaptureQueriesContext(connection) as queries:
        assert matched(index, "order.created") == {one, two}
    assert len(queries) == 2  # read_version(), and one refresh for both changes
    assert sorted(added) == sorted([("order.*", one), ("order.>", two)])


def test_a_statement_or_a_transaction_with_many_changes_is_one_version() -> None:
    before = TopicIndexVersion.objects.get().version
    with transaction.atomic():
        Subscription.objects.bulk_create([new("order.*") for _ in range(20)])
        Subscription.objects.update(topic_patterns=["user.*"])
    changes = TopicIndexChange.objects.filter(version__gt=before)
    assert changes.values("version").distinct().count() == 1
    assert changes.count() == 40


def test_a_transaction_sees_its_own_changes(index: TopicIndex) -> None:
    kept, changed, removed = subscribe("order.*"), subscribe("order.*"), subscribe("order.*")
    assert matched(index, "order.created") == {kept, changed, removed}
    with transaction.atomic():
        added = subscribe("order.created")
        assert matched(index, "order.created") == {kept, changed, removed, added}
        Subscription.objects.filter(pk=changed).update(topic_patterns=["user.*"])
        assert matched(index, "order.created") == {kept, removed, added}
        Subscription.objects.filter(pk=removed).delete()
        assert matched(index, "order.created") == {kept, added}
        assert matched(index, "user.created") == {changed}
    assert matched(index, "order.created") == {kept, added}


def test_a_transaction_that_changed_nothing_more_reads_its_changes_once(
    index: TopicIndex,
) -> None:
    subscribe("order.*")
    for warm in (False, True):
        with transaction.atomic():
            subscribe("order.created")
            first = matched(index, "order.created")
            seen = read_version()
            with CaptureQueriesContext(connection) as queries:
                assert set(index.match("order.created", seen)) == first
            assert len(queries) == 0, f"warm: {warm}"
        matched(index, "order.created")


def test_what_is_rolled_back_leaves_no_phantom(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    with rolled_back():
        subscribe("order.created")
        Subscription.objects.filter(pk=one).update(topic_patterns=["user.*"])
        assert one not in matched(index, "order.created")
    assert matched(index, "order.created") == {one}
    assert matched(index, "user.created") == set()


def test_a_cold_index_takes_nothing_uncommitted(index: TopicIndex) -> None:
    one = subscribe("order.*")
    with rolled_back():
        phantom = subscribe("order.created")
        assert matched(index, "order.created") == {one, phantom}
    assert matched(index, "order.created") == {one}


def test_a_savepoint_that_is_rolled_back_leaves_no_phantom(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    with transaction.atomic():
        two = subscribe("order.created")
        with rolled_back():
            three = subscribe("order.>")
            assert matched(index, "order.created") == {one, two, three}
        assert matched(index, "order.created") == {one, two}
        with rolled_back():
            four = subscribe("order.>")
            assert matched(index, "order.created") == {one, two, four}
        assert matched(index, "order.created") == {one, two}
    assert matched(index, "order.created") == {one, two}


def test_another_connection_does_not_see_what_is_uncommitted(index: TopicIndex) -> None:
    one = subscribe("order.*")
    with transaction.atomic():
        two = subscribe("order.*")
        assert matched(index, "order.created") == {one, two}
        assert elsewhere(lambda: matched(index, "order.created")) == {one}
        assert matched(index, "order.created") == {one, two}
    assert elsewhere(lambda: matched(index, "order.created")) == {one, two}


def test_a_change_by_another_connection_is_seen_once_committed(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    two = elsewhere(lambda: subscribe("order.*"))
    assert matched(index, "order.created") == {one, two}


def test_a_change_by_another_connection_is_seen_amid_a_transaction(index: TopicIndex) -> None:
    one = subscribe("order.*")
    with transaction.atomic():
        assert matched(index, "order.created") == {one}
        two = elsewhere(lambda: subscribe("order.*"))
        assert matched(index, "order.created") == {one, two}
        three = subscribe("order.*")
        assert matched(index, "order.created") == {one, two, three}


def test_an_older_snapshot_does_not_take_the_index_back(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    with transaction.atomic():
        sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert matched(index, "order.created") == {one}
        two = elsewhere(lambda: subscribe("order.*"))
        assert elsewhere(lambda: matched(index, "order.created")) == {one, two}
        assert matched(index, "order.created") == {one, two}
    latest = read_version()
    with CaptureQueriesContext(connection) as queries:
        assert set(index.match("order.created", latest)) == {one, two}
    assert len(queries) == 0


def test_a_reader_that_comes_late_gets_the_newer_index(index: TopicIndex) -> None:
    one = subscribe("order.*")
    late = read_version()
    two = subscribe("order.*")
    assert matched(index, "order.created") == {one, two}
    assert set(index.match("order.created", late)) == {one, two}
    with CaptureQueriesContext(connection) as queries:
        assert matched(index, "order.created") == {one, two}
    assert len(queries) == 1  # read_version() alone: the index did not go back


def test_a_restored_database_is_read_anew(index: TopicIndex) -> None:
    one = subscribe("order.*")
    row = TopicIndexVersion.objects.get()
    changes = list(TopicIndexChange.objects.values_list("id", flat=True))
    two = subscribe("order.*")
    assert matched(index, "order.created") == {one, two}
    # As a backup that was made before `two` would leave it.
    sql("SET session_replication_role = replica")
    sql("DELETE FROM subscriptions_subscription WHERE id = %s", two)
    TopicIndexChange.objects.exclude(id__in=changes).delete()
    TopicIndexVersion.objects.update(version=row.version, transaction=row.transaction)
    sql("SET session_replication_role = DEFAULT")
    assert matched(index, "order.created") == {one}


def test_a_restored_database_that_moved_on_is_read_anew(index: TopicIndex) -> None:
    one = subscribe("order.*")
    changes = list(TopicIndexChange.objects.values_list("id", flat=True))
    two = subscribe("order.*")
    assert matched(index, "order.created") == {one, two}
    sql("SET session_replication_role = replica")
    sql("DELETE FROM subscriptions_subscription WHERE id = %s", two)
    TopicIndexChange.objects.exclude(id__in=changes).delete()
    sql("SET session_replication_role = DEFAULT")
    three = subscribe("order.*")
    assert matched(index, "order.created") == {one, three}


def test_the_number_of_a_restored_transaction_is_not_taken_for_the_own(
    index: TopicIndex,
) -> None:
    one = subscribe("order.*")
    with transaction.atomic():
        sql(
            "UPDATE subscriptions_topicindexversion "
            "SET transaction = pg_current_xact_id()::text::bigint"
        )
        before, own = read_version()
        assert own is None
        two = subscribe("order.*")
        after, own = read_version()
        assert own is not None
        assert before is not None
        assert after is not None
        assert after > before
    assert matched(index, "order.created") == {one, two}


def test_a_process_behind_a_trimmed_log_reads_everything(index: TopicIndex) -> None:
    one = subscribe("order.*")
    assert matched(index, "order.created") == {one}
    late = TopicIndex()
    Subscription.objects.filter(pk=one).update(topic_patterns=["user.*"])
    two = subscribe("order.*")
    three = subscribe("order.*")
    assert trim_changes(keep=1) >= 3
    assert TopicIndexChange.objects.count() == 1
    assert matched(index, "order.created") == {two, three}
    assert matched(late, "order.created") == {two, three}


def test_trimming_keeps_the_newest_version_whole() -> None:
    subscribe("order.*")
    Subscription.objects.bulk_create([new("order.*") for _ in range(30)])
    trim_changes(keep=10)
    assert TopicIndexChange.objects.count() == 30
    assert trim_changes(keep=10) == 0
    assert trim_changes(keep=1000) == 0


def test_trimming_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        trim_changes(keep=0)


@pytest.mark.parametrize(
    "stored",
    [
        '"order.created"',
        "null",
        '{"order.created": 1}',
        "7",
        '["order.>.created"]',
        '[7, null, ["order.created"], "order..created", ""]',
        '["order.created\\n"]',
    ],
)
def test_a_bad_stored_pattern_disables_nothing_but_itself(
    index: TopicIndex, stored: str, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = subscribe("order.*"), subscribe("order.*")
    for warm in (False, True):
        if warm:
            assert matched(index, "order.created") == {good}
        sql(
            "UPDATE subscriptions_subscription SET topic_patterns = %s, updated_at = now() "
            "WHERE id = %s",
            stored,
            bad,
        )
        assert matched(index, "order.created") == {good}
        assert str(bad) in caplog.text
        caplog.clear()
        if not warm:
            sql("UPDATE subscriptions_subscription SET topic_patterns = '[]' WHERE id = %s", bad)
    assert matched(TopicIndex(), "order.created") == {good}
    sql(
        """UPDATE subscriptions_subscription SET topic_patterns = '["order.>", "a..b"]'
        WHERE id = %s""",
        bad,
    )
    assert matched(index, "order.created") == {good, bad}


def test_threads_that_publish_while_others_subscribe_miss_nothing(index: TopicIndex) -> None:
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
            assert matched(index, "order.created") >= before

    def closing(work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            connection.close()

    with ThreadPoolExecutor(6) as pool:
        jobs = [pool.submit(closing, work) for work in (writer, writer, *[reader] * 4)]
        for job in jobs:
            job.result(timeout=60)
    assert matched(index, "order.created") == set(committed)
    assert len(committed) == 30


@pytest.mark.parametrize("cold", [True, False])
def test_a_slow_refresh_does_not_undo_a_quicker_one(
    index: TopicIndex, monkeypatch: pytest.MonkeyPatch, cold: bool
) -> None:
    one = subscribe("order.*")
    if not cold:
        assert matched(index, "order.created") == {one}
    two = subscribe("order.*")
    added: list[uuid.UUID] = []
    reading = "_read_everything" if cold else "_read_changes"
    original = getattr(subscriptions.index, reading)

    def overtaken(*args: Any) -> Any:
        read = original(*args)
        if not added:
            added.append(elsewhere(lambda: subscribe("order.*")))
            assert elsewhere(lambda: matched(index, "order.created")) == {one, two, *added}
        return read

    monkeypatch.setattr(subscriptions.index, "_TURN_SECONDS", 0.01)
    monkeypatch.setattr(subscriptions.index, reading, overtaken)
    assert matched(index, "order.created") >= {one, two}
    latest = read_version()
    with CaptureQueriesContext(connection) as queries:
        assert set(index.match("order.created", latest)) == {one, two, *added}
    assert len(queries) == 0


def test_transactions_that_overlap_become_visible_in_the_order_of_their_versions(
    index: TopicIndex,
) -> None:
    waiting = threading.Event()

    def second() -> uuid.UUID:
        waiting.set()
        try:
            return subscribe("order.*")
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        with transaction.atomic():
            one = subscribe("order.*")
            job = pool.submit(second)
            assert waiting.wait(10)
            # The second cannot be committed before the first: nobody sees only the later version.
            assert elsewhere(lambda: matched(index, "order.created")) == set()
            assert not job.done()
        two = job.result(timeout=30)
    assert matched(index, "order.created") == {one, two}


def test_the_version_rides_along_with_an_insert(index: TopicIndex) -> None:
    with connection.cursor() as cursor, transaction.atomic():
        cursor.execute(
            "INSERT INTO django_session (session_key, session_data, expire_date) "
            f"VALUES ('k', '', now()) RETURNING session_key, {READ_VERSION}"
        )
        row = cursor.fetchone()
        assert row[1:] == read_version()
        assert row[2] is None
        subscribe("order.*")
        cursor.execute(
            f"UPDATE django_session SET session_data = 'x' RETURNING session_key, {READ_VERSION}"
        )
        row = cursor.fetchone()
        assert row[1:] == read_version()
        assert row[2] is not None


def test_many_topics_are_matched_in_one_state(index: TopicIndex) -> None:
    one, two = subscribe("order.*"), subscribe("user.*")
    with CaptureQueriesContext(connection) as queries:
        found = index.match_many(["order.a", "user.a", "other"], (1, None))
    assert [set(ids) for ids in found] == [{one}, {two}, set()]
    assert len(queries) <= 3


def test_without_server_side_cursors_the_index_is_read_too(index: TopicIndex) -> None:
    one = subscribe("order.*")
    settings = connection.settings_dict
    before = settings.get("DISABLE_SERVER_SIDE_CURSORS", False)
    settings["DISABLE_SERVER_SIDE_CURSORS"] = True
    try:
        assert matched(index, "order.created") == {one}
    finally:
        settings["DISABLE_SERVER_SIDE_CURSORS"] = before


# From Python 3.12 on, a fork beside other threads warns. Such forks happen: this is about them.
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_begins_with_an_index_of_its_own() -> None:
    parent = topic_index()
    with parent._lock:  # As another thread of the parent might hold it at the fork.
        child = os.fork()
        if child == 0:
            free = topic_index() is not parent and topic_index()._lock.acquire(blocking=False)
            os._exit(0 if free else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_migration_can_be_undone() -> None:
    from django.core.management import call_command

    one = subscribe("other")
    try:
        call_command("migrate", "subscriptions", "0001", verbosity=0)
        version = TopicIndexVersion.objects.get().version
        sql("UPDATE subscriptions_subscription SET topic_patterns = '[\"order.*\"]'")
        assert TopicIndexVersion.objects.get().version == version
    finally:
        call_command("migrate", verbosity=0)
    # The subscriptions that were there before the triggers came count as changed.
    index = TopicIndex()
    index._version = version
    assert matched(index, "order.created") == {one}
