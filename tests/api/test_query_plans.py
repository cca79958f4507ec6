"""Lists are answered by reading some pages' worth of rows, however full the tables are.

There are 30,000 deliveries of 2,000 subscriptions; what is looked for is few, and the oldest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from django.db import connection, transaction
from django.utils import timezone

from deliveries.keeping import keyset
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription
from tests.api.calls import Caller
from tests.deliveries.test_operators_questions import read_so_far
from tests.deliveries.test_query_plans import analyse

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("filled")]

# A page shows 50 rows; each has a look at its event, by an index and in the table.
A_PAGE = 500
MINE = "00000000-0000-7000-8000-000000000001"

# Few of tenant `acme`, whose one subscription is `MINE`, and few of the topic `rare`: the oldest.
FILL = """
INSERT INTO subscriptions_subscription (
    id, name, url, topic_patterns, headers, max_in_flight, recovery, enabled,
    consecutive_failures, last_error, circuit_epoch, probe_count, created_at, updated_at, tenant
)
SELECT CASE WHEN n = 0 THEN %(mine)s::uuid ELSE gen_random_uuid() END, 'filling ' || n,
    'https://filling.example/' || n, '["filling"]', '{}', 10, 'manual', true, 0, '', 0, 0, now(),
    now(), CASE WHEN n = 0 THEN 'acme' ELSE '' END
FROM generate_series(0, 2000) n;

INSERT INTO deliveries_event (id, topic, type, body, created_at, tenant)
SELECT 'e-' || n, CASE WHEN n <= 60 THEN 'rare' ELSE 'filling' END, '',
    '{"v":1,"payload":{}}', now() - interval '30000 s' + n * interval '1 s',
    CASE WHEN n <= 300 THEN 'acme' ELSE '' END
FROM generate_series(1, 30000) n;

INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, next_attempt_at, attempt_count, retries_used, last_error,
    created_at, held_at, finished_at, tenant
)
SELECT e.id, s.id, st.status, CASE WHEN st.status = 'pending' THEN now() END, 1, 0, '',
    e.created_at, CASE WHEN st.status = 'held' THEN now() END,
    CASE WHEN st.status NOT IN ('pending', 'held') THEN now() END, s.tenant
FROM (SELECT *, row_number() OVER (ORDER BY created_at) AS n FROM deliveries_event) e
JOIN (SELECT *, row_number() OVER (ORDER BY tenant DESC, id) AS n FROM subscriptions_subscription) s
    ON s.n = CASE WHEN e.n <= 300 THEN 1 ELSE 2 + e.n %% 2000 END
CROSS JOIN LATERAL (
    SELECT CASE WHEN e.n <= 300
        THEN (ARRAY['pending', 'held', 'succeeded', 'failed', 'discarded'])[1 + e.n %% 5]
        WHEN e.n %% 50 = 0 THEN (ARRAY['pending', 'held', 'failed', 'discarded'])[1 + e.n / 50 %% 4]
        ELSE 'succeeded' END AS status
) st
ORDER BY e.n;
"""


@pytest.fixture
def filled(transactional_db: None) -> Iterator[None]:
    """Plans depend on the size of files and on statistics, which are left to no other test."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE deliveries_event, subscriptions_subscription CASCADE")
        cursor.execute(FILL, {"mine": MINE})
    analyse()
    yield
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE deliveries_event, subscriptions_subscription CASCADE")
        cursor.execute(
            "SELECT pg_clear_attribute_stats(schemaname, tablename, attname, inherited)"
            " FROM pg_stats WHERE schemaname = 'public'"
        )


def read(caller: Caller, path: str, limit: int) -> dict[str, Any]:
    """The answer, which is found by reading fewer rows than `limit`."""
    caller.call("GET", path)  # whatever is read once a process
    # By the counts of this connection alone: those of others are written down when they like.
    with transaction.atomic():
        before = read_so_far()
        response = caller.call("GET", path)
        rows = read_so_far() - before
    assert response.status_code == 200
    assert rows < limit, (path, rows)
    answer: dict[str, Any] = response.data
    return answer


def test_what_has_an_index_is_read_by_it() -> None:
    application = Caller("deliveries:read")
    acme = Caller("deliveries:read", tenant="acme")
    middle = Delivery.objects.get(event_id="e-15000").created_at.isoformat()
    questions: list[tuple[Caller, str, dict[str, Any]]] = [
        (application, "events", {}),
        (application, "events", {"topic": "rare"}),
        (application, "events", {"topic": "filling", "until": middle}),
        (application, "events", {"tenant": "acme"}),
        (application, "events", {"until": middle}),
        (application, "events", {"tenant": "acme", "until": middle}),
        (acme, "events", {}),
        (application, "deliveries", {}),
        (application, "deliveries", {"tenant": "acme"}),
        (application, "deliveries", {"subscription": MINE}),
        (application, "deliveries", {"until": middle}),
        (acme, "deliveries", {}),
        (acme, "deliveries", {"subscription": MINE}),
    ]
    for status in ("pending", "held", "failed", "discarded"):
        questions += [
            (application, "deliveries", {"status": status}),
            (application, "deliveries", {"status": status, "tenant": "acme"}),
            (application, "deliveries", {"status": status, "subscription": MINE}),
            (acme, "deliveries", {"status": status}),
        ]
    for caller, path, query in questions:
        address = f"/api/v1/{path}?{urlencode(query)}"
        # Where a time is, is found by halving; what is near it is looked at.
        page = read(caller, address, A_PAGE * (10 if "until" in query else 1))
        assert len(page["data"]) == 50, query
        if cursor := page["next_cursor"]:
            assert read(caller, f"{address}&cursor={cursor}", A_PAGE * 10)["data"], query


def test_an_event_and_its_deliveries_are_read_by_their_ids() -> None:
    application = Caller("deliveries:read")
    for event in ("e-1", "e-29999"):
        assert len(read(application, f"/api/v1/deliveries?event={event}", 50)["data"]) == 1
        assert len(read(application, f"/api/v1/events/{event}", 50)["deliveries"]) == 1
    delivery = Delivery.objects.earliest("id")
    assert read(application, f"/api/v1/deliveries/{delivery.pk}", 50)["attempts"] == []


def test_what_has_no_index_is_looked_for_in_so_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    application = Caller("deliveries:read")
    monkeypatch.setattr(keyset, "MAX_LOOKED_AT", 2000)
    for path in (
        "deliveries?topic=rare",
        "deliveries?topic=rare&tenant=",
        "deliveries?topic=rare&status=pending",
        "deliveries?topic=filling&status=failed",
        "events?topic=rare&tenant=acme",
        "events?topic=rare&tenant=",
    ):
        # Twice in the index and the table, and with a topic the event in both.
        read(application, f"/api/v1/{path}", 2000 * 8)
    assert len(read(application, "/api/v1/deliveries?status=succeeded", 2000 * 8)["data"]) == 50


@pytest.mark.parametrize("deleted", [False, True])
def test_whose_a_subscription_is_costs_nothing_of_its_history(deleted: bool) -> None:
    """All was sent to one subscription, and the newest is what waits for it."""
    pending = list(Delivery.objects.order_by("-id").values_list("pk", flat=True)[:100])
    Delivery.objects.update(
        subscription=MINE, tenant="acme", status="succeeded", next_attempt_at=None,
        held_at=None, finished_at=timezone.now(),
    )  # fmt: skip
    Delivery.objects.filter(pk__in=pending).update(
        status="pending", next_attempt_at=timezone.now(), finished_at=None
    )
    if deleted:
        Subscription.objects.filter(pk=MINE)._raw_delete(Subscription.objects.db)
    analyse()
    path = f"/api/v1/deliveries?subscription={MINE}"
    for key in ({}, {"tenant": "acme"}, {"tenant": "other"}, {"tenant": ""}):
        caller = Caller("deliveries:read", **key)
        for query in ("", "&status=pending", "&status=held"):
            page = read(caller, path + query, A_PAGE)
            seen = key.get("tenant", "acme") == "acme" and query != "&status=held"
            assert len(page["data"]) == (50 if seen else 0), (key, query)


def test_subscriptions_and_their_figures_are_read_by_their_ids() -> None:
    application = Caller("subscriptions:read")
    acme = Caller("subscriptions:read", tenant="acme")
    page = read(application, "/api/v1/subscriptions", A_PAGE)
    assert len(page["data"]) == 50
    read(application, f"/api/v1/subscriptions?cursor={page['next_cursor']}", A_PAGE)
    assert len(read(acme, "/api/v1/subscriptions", A_PAGE)["data"]) == 1
    assert len(read(acme, "/api/v1/subscriptions?topic=filling", A_PAGE)["data"]) == 1
    read(acme, f"/api/v1/subscriptions/{MINE}", 50)
    stats = read(acme, f"/api/v1/subscriptions/{MINE}/stats", 2000)
    assert stats["recent"]["succeeded"] == 60
    assert stats["held"] == 60


def test_a_replay_of_the_last_hour_reads_nothing_of_the_years_before() -> None:
    """Of a subscription to which all was sent, of which the newest ten are chosen."""
    Delivery.objects.update(
        subscription=MINE, tenant="acme", status="succeeded", next_attempt_at=None, held_at=None
    )
    Event.objects.update(tenant="acme")
    client = Caller("subscriptions:write", tenant="acme")
    since = Delivery.objects.order_by("-id")[9].created_at.isoformat()
    path = f"/api/v1/subscriptions/{MINE}/replay"
    with transaction.atomic():
        before = read_so_far()
        response = client.call("POST", path, {"status": ["succeeded"], "since": since})
        rows = read_so_far() - before
    assert response.data == {"pending": 10, "held": 0, "next_cursor": None}
    assert rows < A_PAGE * 10, rows
