"""Each search finds what was asked for, whichever index it goes by, and pages lead through all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import combinations
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries.keeping import keyset
from deliveries.keeping.finding import ANSWERS, WantedAttempts, WantedDeliveries, WantedEvents
from deliveries.keeping.keyset import Search
from deliveries.models import Attempt, Delivery, Event
from subscriptions.models import Subscription
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

STATUSES = Delivery.Status.values
TOPICS = ("a.one", "a.two", "b.one")
CODES = (200, 302, 404, 503, None)
EVENTS = 60


@pytest.fixture
def now() -> datetime:
    return timezone.now()


@pytest.fixture
def rows(now: datetime) -> list[Delivery]:
    """Of each event two deliveries, of all statuses, topics and tenants, with two attempts.

    Their tables are new files: what a plan costs depends on what earlier tests have left in them.
    """
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE deliveries_delivery, deliveries_attempt, deliveries_event")
    own = [make_subscription(name=f"own {n}", all_tenants=True) for n in range(2)]
    acme = make_subscription(name="acme", tenant="acme")
    events, deliveries, attempts = [], [], []
    for number in range(EVENTS):
        tenant = "acme" if number % 4 == 0 else ""
        event = Event(
            id=f"e-{number}", topic=TOPICS[number % 3], body=b"{}", tenant=tenant,
            created_at=now - timedelta(minutes=EVENTS - number),
        )  # fmt: skip
        events.append(event)
        for one in (own[number % 2], acme if tenant else own[1 - number % 2]):
            status = STATUSES[(number + (one is acme)) % 5]
            made = Delivery(
                event=event, subscription=one, status=status, tenant=one.tenant,
                created_at=event.created_at, attempt_count=0 if number % 7 == 0 else 2,
                next_attempt_at=now if status == "pending" else None,
                held_at=now if status == "held" else None,
                finished_at=None if status in ("pending", "held") else now,
            )  # fmt: skip
            deliveries.append(made)
            for attempt in range(1, made.attempt_count + 1):
                code = CODES[(number + 2 * attempt) % 5]
                attempts.append(Attempt(
                    delivery=made, number=attempt, status_code=code, started_at=event.created_at,
                    outcome="success" if code == 200 else "timeout" if code is None else "http",
                ))  # fmt: skip
    for rows in (events, deliveries, attempts):
        type(rows[0]).objects.bulk_create(rows)
    return list(Delivery.objects.prefetch_related("event", "attempts"))


def is_so(one: Delivery, wanted: WantedDeliveries) -> bool:
    """What the search is to find, as a person would say it. `rows` knows event and attempts."""
    event, attempts = one.event, list(one.attempts.all())
    last = max(attempts, key=lambda attempt: attempt.number, default=None)
    code = None if last is None else last.status_code
    answers = {None: True, 0: last is not None and code is None}
    return (
        wanted.status in (None, one.status)
        and wanted.subscription in (None, one.subscription_id)
        and wanted.topic in (None, event.topic)
        and wanted.tenant in (None, one.tenant)
        and wanted.event in (None, event.pk)
        and wanted.id in (None, one.pk)
        and (wanted.since is None or one.created_at >= wanted.since)
        and (wanted.until is None or one.created_at < wanted.until)
        and answers.get(wanted.answered, code is not None and code // 100 == wanted.answered)
    )


def through(
    search: Callable[[], Search[Any]], limit: int = 7, max_pages: int = 200
) -> tuple[list[Any], list[Any]]:
    """All rows, by the links to older pages; and the same, by the links back to newer ones."""
    forwards: list[Any] = []
    place: Any = None
    for _ in range(max_pages):
        page = keyset.page(search(), place, limit=limit)
        forwards += page.rows
        if page.last is None:
            break
        place = keyset.read_place(keyset.written(page.last), search())
    else:
        pytest.fail("The pages do not end.")
    backwards = list(page.rows)
    for _ in range(max_pages):
        if page.first is None:
            break
        place = keyset.read_place(keyset.written(page.first), search())
        page = keyset.page(search(), place, limit=limit, backwards=True)
        backwards[:0] = page.rows
    else:
        pytest.fail("The pages do not end.")
    return forwards, backwards


def every_pair(now: datetime) -> Iterator[dict[str, Any]]:
    own = Subscription.objects.get(name="own 0").pk
    some = {
        "status": STATUSES,
        "subscription": [own],
        "topic": [TOPICS[0], "none"],
        "tenant": ["acme", ""],
        "event": ["e-8"],
        "since": [now - timedelta(minutes=20, seconds=30)],
        "until": [now - timedelta(minutes=40, seconds=30)],
        "answered": list(ANSWERS.values()),
    }
    yield {}
    for name, values in some.items():
        yield from ({name: value} for value in values)
    for one, other in combinations(some, 2):
        yield from ({one: a, other: b} for a in some[one] for b in some[other])


def test_every_pair_of_filters_finds_what_is_so(rows: list[Delivery], now: datetime) -> None:
    known = {one.pk: [is_so(one, WantedDeliveries(**query)) for query in every_pair(now)]
             for one in rows}  # fmt: skip
    for number, query in enumerate(every_pair(now)):
        search = WantedDeliveries(**query).search
        expected = {one.pk for one in rows if known[one.pk][number]}
        forwards, backwards = through(search)
        assert {one.pk for one in forwards} == expected, query
        assert len(forwards) == len(expected), query
        assert backwards == forwards, query
        found = Delivery.objects.filter(WantedDeliveries(**query).chosen())
        assert {one.pk for one in found} == expected, query


@pytest.mark.parametrize("looked_at", [1, 3, 10])
def test_a_search_that_stops_goes_on_where_it_stopped(
    rows: list[Delivery], now: datetime, looked_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", looked_at)
    for query in ({"status": "succeeded"}, {"answered": 4}, {"topic": "a.one", "answered": 2}):
        expected = {one.pk for one in rows if is_so(one, WantedDeliveries(**query))}
        forwards, backwards = through(WantedDeliveries(**query).search, limit=3)
        assert {one.pk for one in forwards} == expected
        assert backwards == forwards


def test_a_search_that_takes_long_stops_and_goes_on(
    rows: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyset, "MAX_SECONDS", -1.0)
    wanted = WantedDeliveries(status="succeeded", answered=2)
    assert keyset.page(wanted.search(), limit=1).stopped
    forwards, backwards = through(wanted.search, limit=2)
    assert {one.pk for one in forwards} == {one.pk for one in rows if is_so(one, wanted)}
    assert backwards == forwards


def test_the_newest_come_first(rows: list[Delivery]) -> None:
    newest = [one.pk for one in sorted(rows, key=lambda one: -one.pk)]
    for query in ({}, {"topic": "a.one"}, {"status": "failed"}, {"tenant": "acme"}):
        found = [one.pk for one in WantedDeliveries(**query).search().wanted]
        assert found == [pk for pk in newest if pk in set(found)], query
    found = list(WantedDeliveries(answered=5).search().wanted)
    last = [Attempt.objects.filter(delivery=one).latest("number").pk for one in found]
    assert last == sorted(last, reverse=True)


def test_attempts_and_events_are_found_too(rows: list[Delivery], now: datetime) -> None:
    since, until = now - timedelta(minutes=50, seconds=30), now - timedelta(minutes=9, seconds=30)
    times: list[dict[str, Any]] = [
        {},
        {"since": since},
        {"until": until},
        {"since": since, "until": until},
    ]
    attempts = list(Attempt.objects.order_by("-id"))
    for time in times:
        within = [
            one for one in attempts
            if time.get("since", one.started_at) <= one.started_at
            and ("until" not in time or one.started_at < until)
        ]  # fmt: skip
        for answered in (None, 0, 2, 3, 4, 5):
            expected = [
                one for one in within
                if answered is None or (one.status_code or 0) // 100 == answered
            ]  # fmt: skip
            wanted = WantedAttempts(answered=answered, **time)
            assert through(wanted.search) == (expected, expected)
        for event in ("e-8", "e-9"):
            wanted = WantedAttempts(event=event, **time)
            expected = [one for one in within if one.delivery.event_id == event]
            assert through(wanted.search, limit=1) == (expected, expected)
        for topic in (None, "a.one"):
            for tenant in (None, "", "acme"):
                found, back = through(WantedEvents(topic, tenant, **time).search)
                assert found == back
                assert [one.pk for one in found] == [
                    one.pk for one in Event.objects.order_by("-created_at")
                    if topic in (None, one.topic) and tenant in (None, one.tenant)
                    and time.get("since", one.created_at) <= one.created_at
                    and ("until" not in time or one.created_at < until)
                ]  # fmt: skip
    delivery = attempts[0].delivery_id
    numbers = [one.number for one in WantedAttempts(delivery=delivery).search().wanted]
    assert numbers == [2, 1]


def test_pages_of_an_event_lead_through_ids_of_more_than_32_bits(now: datetime) -> None:
    Event.objects.create(id="e", topic="a.one", body=b"{}", created_at=now)
    for number in range(5):
        one = Delivery.objects.create(
            id=2**31 + number, event_id="e", subscription=make_subscription(), created_at=now,
            next_attempt_at=now,
        )  # fmt: skip
        Attempt.objects.create(
            id=2**31 + number, delivery=one, number=1, outcome="timeout", started_at=now
        )
    deliveries = list(Delivery.objects.order_by("-id"))
    assert through(WantedDeliveries(event="e").search, limit=2) == (deliveries, deliveries)
    attempts = list(Attempt.objects.order_by("-id"))
    assert through(WantedAttempts(event="e").search, limit=2) == (attempts, attempts)


def test_what_comes_in_between_two_pages_moves_nothing(rows: list[Delivery], now: datetime) -> None:
    search = WantedDeliveries().search
    first = keyset.page(search(), limit=5)
    before = keyset.page(search(), first.last, limit=5)
    make_subscription(name="new")
    Delivery.objects.create(
        event_id="e-1", subscription=Subscription.objects.get(name="new"), created_at=now,
        next_attempt_at=now,
    )  # fmt: skip
    assert keyset.page(search(), first.last, limit=5).rows == before.rows
    assert before.first is not None
    assert keyset.page(search(), before.first, limit=5, backwards=True).rows == first.rows


def test_a_topic_with_more_events_than_are_looked_at_is_found_by_what_else_is_asked(
    rows: list[Delivery], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Subscription.objects.get(name="own 0").pk
    wanted = WantedDeliveries(topic="a.one", subscription=own)
    assert wanted.search().by == ("-published_at", "-event_id", "-id")
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 10)
    assert wanted.search().by == ("-id",)


@pytest.mark.parametrize(
    "text",
    ["", "x", "{}", "[]", "[1]", '["x"]', '["1", "2"]', '["' + "9" * 30 + '"]', "[" * 10_000,
     '["1\\u0000"]', "null"],
)  # fmt: skip
def test_a_text_that_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(keyset.BadPlace):
        keyset.read_place(text, WantedDeliveries().search())


# The index by which each search goes; with `enable_seqscan` off, what has none has a scan anyway.
INDEXES: list[tuple[Any, str]] = [
    (WantedDeliveries(), "deliveries_delivery_pkey"),
    (WantedDeliveries(status="succeeded"), "deliveries_delivery_pkey"),
    (WantedDeliveries(since=datetime(2026, 1, 1, tzinfo=timezone.get_fixed_timezone(0))),
     "deliveries_delivery_pkey"),
    (WantedDeliveries(answered=2), "deliveries_delivery_pkey"),
    (WantedDeliveries(answered=5), "attempt_answered"),
    (WantedDeliveries(answered=0), "attempt_unanswered"),
    (WantedDeliveries(status="failed"), "delivery_unsuccessful"),
    (WantedDeliveries(status="discarded", tenant="acme"), "delivery_unsuccessful_tenant"),
    (WantedDeliveries(status="pending"), "delivery_due"),
    (WantedDeliveries(status="held"), "delivery_held"),
    (WantedDeliveries(tenant="acme"), "delivery_of_tenant"),
    (WantedDeliveries(event="e-1"), "delivery_event"),
    (WantedDeliveries(topic="a.one"), "event_of_topic"),
    (WantedDeliveries(topic="a.one", status="failed"), "event_of_topic"),
    (WantedAttempts(), "deliveries_attempt_pkey"),
    (WantedAttempts(answered=4), "attempt_answered"),
    (WantedAttempts(answered=0), "attempt_unanswered"),
    (WantedAttempts(delivery=1), "attempt_number"),
    (WantedAttempts(event="e-1"), "delivery_event"),
    (WantedEvents(), "event_created"),
    (WantedEvents(topic="a.one"), "event_of_topic"),
    (WantedEvents(tenant="acme"), "event_of_tenant"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "index"), INDEXES)
def test_a_search_goes_by_its_index(rows: list[Delivery], wanted: Any, index: str) -> None:
    """On a few rows, where reading all would be as quick; whatever tests before this have left in
    the statistics."""
    with connection.cursor() as cursor:
        for table in ("deliveries_delivery", "deliveries_attempt", "deliveries_event"):
            cursor.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", [table])
            cursor.execute("SELECT pg_clear_relation_stats('public', %s)", [table])
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        search = wanted.search()
        with CaptureQueriesContext(connection) as captured:
            list(search.rows.order_by(*search.by)[:5])
        cursor.execute(f"EXPLAIN {captured[-1]['sql']}")
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert f" using {index} " in plan, plan
    assert "Seq Scan" not in plan, plan


def test_a_subscriptions_history_goes_by_its_index(rows: list[Delivery]) -> None:
    own = Subscription.objects.get(name="own 0").pk
    for status, index in (
        (None, "delivery_history"),
        ("held", "delivery_held"),
    ):
        test_a_search_goes_by_its_index(
            rows, WantedDeliveries(status=status, subscription=own), index
        )


def test_no_field_of_a_search_is_forgotten_here() -> None:
    assert {one.name for one in fields(WantedDeliveries)} == {
        "status", "subscription", "topic", "tenant", "event", "since", "until", "answered", "id",
    }  # fmt: skip
