"""What an operator asks is answered by reading some pages' worth of rows, however old the answer.

The tables hold 30,000 deliveries of 2,000 subscriptions, newer than what is looked for.
"""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations_with_replacement, product
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone

from deliveries.admin import pagination
from deliveries.keeping import keyset
from deliveries.keeping.finding import ANSWERS, WantedAttempts, WantedDeliveries, WantedEvents
from deliveries.models import Delivery
from subscriptions.models import Subscription
from tests.commands import run_json
from tests.deliveries.plans import RowsRead
from tests.deliveries.test_query_plans import FILL, analyse
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("ordered", "uncounted"),
]

EVENTS = "/admin/deliveries/event/"
DELIVERIES = "/admin/deliveries/delivery/"
ATTEMPTS = "/admin/deliveries/attempt/"
SUBSCRIPTIONS = "/admin/subscriptions/subscription/"
STATUSES = ("pending", "held", "failed", "discarded", "succeeded")

# A page shows 50 rows; for each its event, its subscription and its lane are looked up. Where no
# index knows all that is asked, ten times as many are looked at first, with what belongs to them.
A_PAGE, A_LOOK = 500, 3000
# Rows at which a page stops to look, and what is read for them: each in an index and in its table,
# with its event and its last attempt. All tables and their indexes have some 700,000.
LOOKED_AT = 2000
A_LONG_LOOK = 8 * LOOKED_AT

# 60 deliveries of each status and 2,000 more that succeeded; 2,000 of another subscription in
# each status that is not finished well.
OLD = """
INSERT INTO deliveries_event (id, topic, type, body, created_at)
SELECT 'old-' || n, 'old.one', '', '{}', now() - interval '40 days' + n * interval '1 second'
FROM generate_series(1, 2000) n;

INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, next_attempt_at, attempt_count, retries_used, last_error,
    created_at, held_at, finished_at
)
SELECT 'old-' || n, subscription_id, status, CASE WHEN status = 'pending' THEN now() END, 1, 0, '',
    now() - interval '40 days', CASE WHEN status = 'held' THEN now() END,
    CASE WHEN status NOT IN ('pending', 'held') THEN now() - interval '40 days' END
FROM (VALUES
    (%(mine)s::uuid, 'pending', 60), (%(mine)s, 'held', 60), (%(mine)s, 'failed', 60),
    (%(mine)s, 'discarded', 60), (%(mine)s, 'succeeded', 2000),
    (%(other)s, 'pending', 2000), (%(other)s, 'held', 2000), (%(other)s, 'failed', 2000),
    (%(other)s, 'discarded', 2000)
) AS made (subscription_id, status, count), generate_series(1, made.count) n;

INSERT INTO deliveries_attempt (
    delivery_id, number, outcome, status_code, error, response_body, remote_address, started_at,
    duration_ms
)
SELECT id, 2, CASE WHEN mod(id, 2) = 0 THEN 'http' ELSE 'timeout' END,
    CASE WHEN mod(id, 2) = 0 THEN 503 END, '', '', '', created_at, 1
FROM deliveries_delivery WHERE status = 'failed';
"""


READ_IN_THIS_TRANSACTION = """
SELECT coalesce(sum(pg_stat_get_xact_tuples_returned(oid)), 0) FROM pg_class
WHERE relkind IN ('r', 'i') AND relnamespace = 'public'::regnamespace
"""


def read_so_far() -> int:
    with connection.cursor() as cursor:
        cursor.execute(READ_IN_THIS_TRANSACTION)
        return int(cursor.fetchone()[0])


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted, and for how long, is the paginator's affair: here all is estimated."""
    monkeypatch.setattr(pagination, "WORTH_COUNTING", -1)


@pytest.fixture
def mine(transactional_db: None) -> Subscription:
    mine = make_subscription(name="mine", topic_patterns=["nothing.else"])
    other = make_subscription(name="other", topic_patterns=["nothing.else"])
    with connection.cursor() as cursor:
        cursor.execute(OLD, {"mine": mine.pk, "other": other.pk})
        cursor.execute(FILL)
    analyse()
    return mine


def shown(client: Client, url: str, limit: int = A_PAGE, **query: Any) -> list[Any]:
    """The rows of the page, which are found by reading fewer than `limit`."""
    # By the counts of this connection alone: those of others are written down when they like.
    with transaction.atomic():
        before = read_so_far()
        response = client.get(url, query)
        rows = read_so_far() - before
    assert rows < limit, (query, rows)
    assert response.status_code == 200
    return list(response.context["cl"].result_list)


def test_the_deliveries_of_a_subscription_of_a_status_and_of_an_event(
    admin_client: Client, mine: Subscription
) -> None:
    newest = Delivery.objects.filter(subscription=mine).order_by("-id")
    assert shown(admin_client, DELIVERIES, subscription=mine.pk) == list(newest[:50])
    for status in STATUSES:
        limit = A_LOOK if status == "succeeded" else A_PAGE
        found = shown(admin_client, DELIVERIES, limit, status__exact=status)
        assert {one.status for one in found} == {status}
        assert len(found) == 50
        found = shown(admin_client, DELIVERIES, limit, status__exact=status, subscription=mine.pk)
        assert {(one.status, one.subscription_id) for one in found} == {(status, mine.pk)}
        assert len(found) == 50
        if status == "pending":  # the next due first
            assert found == sorted(found, key=lambda one: (one.next_attempt_at, one.pk))
    for query in ({"event": "old-1"}, {"q": "old-1"}):
        assert {one.event_id for one in shown(admin_client, DELIVERIES, **query)} == {"old-1"}


def test_what_belongs_to_a_tenant(admin_client: Client, mine: Subscription) -> None:
    """Also to one whose rows are few and old; and to one whose rows are many."""
    with connection.cursor() as cursor:
        cursor.execute("UPDATE deliveries_event SET tenant = 'many' WHERE id LIKE 'filling-%%'")
        cursor.execute(
            "UPDATE deliveries_delivery SET tenant = 'many' WHERE event_id LIKE 'filling-%%'"
        )
        cursor.execute(
            "UPDATE subscriptions_subscription SET tenant = 'many' WHERE name LIKE 'filling%%'"
        )
        for table in ("deliveries_delivery", "subscriptions_subscription"):
            of = "subscription_id" if table == "deliveries_delivery" else "id"
            cursor.execute(f"UPDATE {table} SET tenant = 'few' WHERE {of} = %s", [mine.pk])
        cursor.execute("UPDATE deliveries_event SET tenant = 'few' WHERE id LIKE 'old-1__'")
    analyse()
    assert {one.tenant for one in shown(admin_client, EVENTS, tenant="few")} == {"few"}
    assert len(shown(admin_client, EVENTS, tenant="many")) == 50
    assert len(shown(admin_client, DELIVERIES, tenant="many")) == 50
    newest = Delivery.objects.filter(subscription=mine).order_by("-id")
    assert shown(admin_client, DELIVERIES, tenant="few") == list(newest[:50])
    for status in STATUSES:
        limit = A_LOOK if status == "succeeded" else A_PAGE
        found = shown(admin_client, DELIVERIES, limit, tenant="few", status__exact=status)
        assert {(one.status, one.subscription_id) for one in found} == {(status, mine.pk)}
        assert len(found) == 50


def test_the_attempts_that_went_wrong(admin_client: Client, mine: Subscription) -> None:
    for answer, code in (("5xx", 503), ("none", None)):
        found = shown(admin_client, ATTEMPTS, A_LOOK, answer=answer)
        assert {one.status_code for one in found} == {code}
        assert len(found) == 50
    delivery = found[0].delivery_id
    found = shown(admin_client, ATTEMPTS, delivery=delivery)
    assert {one.delivery_id for one in found} == {delivery}


def found(wanted: Any) -> list[Any]:
    """A page of what is wanted, for which no more is read than may be looked at."""
    with transaction.atomic():
        before = read_so_far()
        rows = keyset.page(wanted.search(), limit=50).rows
        assert read_so_far() - before < A_LONG_LOOK, wanted
    return rows


def test_every_filter_and_every_pair_of_them(
    mine: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked, a page is found by reading so many rows, and no more."""
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", LOOKED_AT)
    Delivery.objects.filter(attempt_count=1, status="failed").update(attempt_count=2)
    Delivery.objects.filter(subscription=mine).update(tenant="few")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE subscriptions_subscription SET tenant = 'few' WHERE name = 'mine'")
    analyse()
    now = timezone.now()
    asked: dict[str, Any] = {
        "status": STATUSES,
        "answered": ANSWERS.values(),
        "subscription": (mine.pk,),
        "topic": ("old.one", "filling.one", "none.such"),
        "since": (now - timedelta(days=41), now - timedelta(hours=1)),
        "until": (now - timedelta(days=39),),
        "event": ("old-1",),
        "tenant": ("few",),
    }
    for one, two in combinations_with_replacement(asked, 2):
        for values in product(asked[one], asked[two]):
            query = dict(zip((one, two), values, strict=True))
            found(WantedDeliveries(**query))
            if {one, two} <= {"topic", "since", "until", "tenant"}:
                found(WantedEvents(**query))
            if {one, two} <= {"answered", "since", "until", "event"}:
                found(WantedAttempts(**query))


def test_nothing_is_sorted_that_has_no_index(admin_client: Client, mine: Subscription) -> None:
    """Whatever columns the address asks for."""
    for url in (DELIVERIES, EVENTS, ATTEMPTS):
        for column in range(9):
            for order in (f"{column}", f"-{column}"):
                assert len(shown(admin_client, url, o=order)) == 50


def test_the_subscriptions_that_need_an_operator_first(
    admin_client: Client, mine: Subscription
) -> None:
    trip(mine)
    # What waits is counted for each subscription of the page; that is not the question here.
    Delivery.objects.filter(status__in=["pending", "held"]).delete()
    analyse()
    assert shown(admin_client, SUBSCRIPTIONS)[0] == mine
    for column in range(9):
        for order in (f"{column}", f"-{column}"):
            assert len(shown(admin_client, SUBSCRIPTIONS, o=order)) == 50


def test_a_replay_of_a_subscription_reads_what_it_replays(mine: Subscription) -> None:
    rows = RowsRead()
    assert run_json("replay", "--subscription", "mine", "--dry-run")["chosen"] == 120
    assert run_json("replay", "--subscription", "mine")["pending"] == 120
    # Each is found, locked and changed: a few reads.
    assert rows.so_far() < 120 * 10
    rows = RowsRead()
    words = ("replay", "--subscription", "mine", "--status", "succeeded", "--dry-run")
    assert run_json(*words)["chosen"] > 2000
    assert rows.so_far() < 5000
