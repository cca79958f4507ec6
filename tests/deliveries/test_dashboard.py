"""The admin's first page: what it says, to whom, where it leads, and what it costs."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from html import unescape
from io import StringIO
from typing import Any

import pytest
import redis
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries import publish
from deliveries.admin import dashboard
from deliveries.keeping.statistics import worst
from deliveries.models import Delivery, HourRollup, MinuteRollup
from deliveries.monitoring import sweeps, workers
from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS
from subscriptions import audit, circuit
from subscriptions.models import Subscription, TripFuse
from tests.conftest import empty_redis
from tests.end_to_end.conftest import eventually
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db

PAGE = "/admin/"
FRAGMENT = "/admin/dashboard/"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[redis.Redis]:
    dashboard._kept.forget()
    with empty_redis() as client:
        yield client
    dashboard._kept.forget()


def set_columns(subscription: Subscription, **columns: Any) -> None:
    names = ", ".join(f"{name} = %s" for name in columns)
    with connection.cursor() as cursor:
        cursor.execute(
            f"UPDATE subscriptions_subscription SET {names} WHERE id = %s",
            [*columns.values(), subscription.pk],
        )


def trip(subscription: Subscription, error: str, at: datetime | None = None) -> None:
    set_columns(
        subscription,
        enabled=False,
        auto_disabled_at=at or timezone.now(),
        consecutive_failures=5,
        last_error=error,
    )


def minute(ago: int, *, succeeded: int = 0, failed: int = 0, retried: int = 0) -> None:
    made = succeeded + failed + retried
    MinuteRollup.objects.create(
        minute=timezone.now().replace(second=0, microsecond=0) - timedelta(minutes=ago),
        succeeded=succeeded,
        failed=failed,
        retried=retried,
        held=0,
        attempt_ms=[0, 0, 0, made, *[0] * (len(ATTEMPT_BOUNDS) - 3)],
        arrival_ms=[0, succeeded, *[0] * (len(ARRIVAL_BOUNDS) - 1)],
    )


def hour(subscription: Subscription, *, ago: int = 0, succeeded: int = 0, failed: int = 0) -> None:
    HourRollup.objects.create(
        hour=timezone.now().replace(minute=0, second=0, microsecond=0) - timedelta(hours=ago),
        subscription_id=subscription.pk,
        succeeded=succeeded,
        failed=failed,
    )


def words(html: str) -> str:
    """The text of a page, without its marks."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def read(client: Client, url: str = FRAGMENT) -> str:
    dashboard._kept.forget()
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


@pytest.fixture
def installation() -> dict[str, Subscription]:
    found = {name: make_subscription(name=name) for name in ("good", "bad", "shaky", "off")}
    publish("test.one", {})
    trip(found["bad"], "Connection refused by <b>bad</b>")
    Delivery.objects.filter(subscription=found["bad"]).update(
        status="held", held_at=timezone.now(), next_attempt_at=None
    )
    set_columns(found["shaky"], consecutive_failures=3, last_error="HTTP 503")
    set_columns(found["off"], enabled=False)
    Delivery.objects.filter(subscription=found["good"]).update(
        next_attempt_at=timezone.now() - timedelta(minutes=5, seconds=30)
    )
    minute(2, succeeded=198, failed=1, retried=1)
    minute(100, succeeded=100)
    hour(found["bad"], succeeded=3, failed=1234)
    hour(found["good"], succeeded=500)
    sweeps.mark_sweep()
    return found


def test_an_operator_sees_at_a_glance_what_is_wrong(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    page = read(admin_client, PAGE)
    text = words(page)
    assert "1 TRIPPED 1 failing 1 paused 1 active" in text
    assert "Success rate 99 % of 200 attempts" in text.replace("99.00", "99")
    assert "99.33 % of 300 in 24 h" in text
    assert "Failed for good 1 deliveries in the last hour" in text
    assert "Connection refused by <b>bad</b>" in text
    assert "<b>bad</b>" not in page
    assert "1,234 of 1,237 attempts" in text
    assert "shaky FAILING · 3/5 HTTP 503" in text
    assert "Held 1" in text
    assert "Waits for a worker for 5 min" in text
    assert "Workers: deliver none" in text
    assert "Last sweep 0 s ago" in text
    assert "The fuse is blown" not in text
    TripFuse.objects.create(blown_at=timezone.now())
    assert "The fuse is blown" in words(read(admin_client))


def test_each_figure_leads_to_what_it_is_about(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    addresses = set(re.findall(r'href="(/admin/[^"]*)"', read(admin_client)))
    assert len(addresses) >= 12
    for address in addresses:
        answer = admin_client.get(unescape(address))
        # A list redirects to itself for a filter that it does not have.
        assert answer.status_code == 200, address


@pytest.mark.parametrize(
    ("state", "name"),
    [("tripped", "bad"), ("failing", "shaky"), ("paused", "off"), ("active", "good")],
)
def test_a_state_leads_to_the_subscriptions_in_it(
    admin_client: Client, installation: dict[str, Subscription], state: str, name: str
) -> None:
    page = admin_client.get("/admin/subscriptions/subscription/", {"state": state})
    assert [one.name for one in page.context["cl"].result_list] == [name]


def test_the_fragment_is_the_page_without_its_frame(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    fragment = read(admin_client)
    assert "<html" not in fragment
    assert words(fragment)[:60] in words(read(admin_client, PAGE))


def test_a_chart_has_a_sentence_and_a_table_for_who_does_not_see_it(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    page = read(admin_client)
    assert "The last hour, minute by minute: 200 attempts, of these 198 succeeded" in page
    values = re.findall(r'data-value="([^"]*)"', page)
    assert len(values) == 2
    chart = json.loads(unescape(values[0]))
    assert len(chart["labels"]) == 60
    assert sum(chart["datasets"][0]["data"]) == 198
    day = json.loads(unescape(values[1]))
    assert sum(day["datasets"][0]["data"]) == 298
    assert '<th scope="row">' in page


def test_what_happened_last_says_who_did_it_or_why(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    with audit.acting("alice", "command"):
        circuit.pause([installation["good"].pk])
        circuit.reset([installation["bad"].pk])
    audit.record(
        "tripped", [audit.Entry(installation["shaky"].pk, {"error": "HTTP 500"})], by_system=True
    )
    # What people do all day is not told here.
    audit.record("tested", [installation["good"].pk])
    text = words(read(admin_client))
    told = text[text.index("What happened last") :]
    assert told.index("shaky tripped") < told.index("bad reset by alice (Command)")
    assert "good paused by alice (Command)" in told
    assert "HTTP 500" in told
    assert "tested" not in told


def test_workers_are_told_by_their_queues(admin_client: Client) -> None:
    make_subscription()
    presence = workers.Presence("one@here", ["deliver", "recover"])
    eventually(workers.seen, "the worker being seen")
    page = read(admin_client)
    presence.end()
    assert "Workers: deliver 1" in words(page)
    assert "Workers: maintenance none" in words(page)
    assert "one@here" in page


def test_without_redis_the_rest_is_shown(
    admin_client: Client, installation: dict[str, Subscription], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> Any:
        raise redis.ConnectionError("away")

    monkeypatch.setattr(dashboard, "seen", away)
    text = words(read(admin_client))
    assert "not known: Redis does not answer" in text
    assert "Last sweep not known" in text
    assert "1 TRIPPED" in text


def viewer(client: Client, *permissions: str) -> Client:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    return client


@pytest.mark.parametrize(
    ("permissions", "seen", "unseen"),
    [
        ((), ["You may not view"], ["TRIPPED", "Queue", "Success rate", "bad"]),
        (["view_subscription"], ["TRIPPED", "bad"], ["Queue", "Success rate", "delivery/"]),
        (["view_auditentry"], ["What happened last"], ["TRIPPED", "Queue", "Success rate"]),
        (["view_delivery"], ["Queue", "Success rate"], ["TRIPPED", "Connection refused"]),
    ],
)
def test_each_sees_what_he_may_view(
    client: Client,
    installation: dict[str, Subscription],
    permissions: list[str],
    seen: list[str],
    unseen: list[str],
) -> None:
    page = read(viewer(client, *permissions))
    assert all(one in page for one in seen)
    assert not any(one in page for one in unseen)


def test_the_figures_are_for_those_alone_who_may_sign_in(client: Client) -> None:
    assert client.get(FRAGMENT).status_code == 302
    client.force_login(User.objects.create_user("nobody"))
    assert client.get(FRAGMENT).status_code == 302


def test_the_page_costs_a_fixed_number_of_queries(
    admin_client: Client, installation: dict[str, Subscription]
) -> None:
    def queries() -> int:
        dashboard._kept.forget()
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert admin_client.get(PAGE).status_code == 200
        return len(captured)

    few = queries()
    for number in range(20):
        trip(make_subscription(name=f"more {number}"), "HTTP 500")
        minute(10 + number, succeeded=number)
    assert queries() == few <= MAX_QUERIES
    # Asked again at once, the figures are those of before.
    with CaptureQueriesContext(connection) as captured:
        admin_client.get(FRAGMENT)
    assert len(captured) == 2  # the session and the user


# The session, the user; settings of workers and their savepoint; states, fuse, pending, held,
# oldest; minutes; the worst, their rows and hours; the audit.
MAX_QUERIES = 20


def test_the_worst_are_tripped_then_failing_then_those_with_most_failures(
    installation: dict[str, Subscription],
) -> None:
    older = make_subscription(name="older")
    trip(older, "HTTP 500", timezone.now() - timedelta(hours=5))
    flaky, fine = make_subscription(name="flaky"), make_subscription(name="fine")
    hour(flaky, ago=2, succeeded=10, failed=4)
    hour(fine, succeeded=10)
    hour(fine, ago=30, failed=9)
    found = worst()
    assert [one.subscription.name for one in found] == ["bad", "older", "shaky", "flaky"]
    assert (found[3].succeeded, found[3].failed) == (10, 4)


def stats(*arguments: str) -> str:
    out = StringIO()
    call_command("stats", *arguments, stdout=out)
    return out.getvalue()


def test_stats_say_how_it_goes_and_who_fails(installation: dict[str, Subscription]) -> None:
    text = stats()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "300 attempts, 99.33 % succeeded" in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows["bad"][1:4] == ["1,237", "1,234", "0.24"]
    assert rows["good"][1:4] == ["500", "0", "100"]
    assert text.index("\nbad") < text.index("\ngood")


def test_stats_in_json(installation: dict[str, Subscription]) -> None:
    said = json.loads(stats("--json", "--hours", "1"))
    assert said["hours"] == 1
    assert said["all"]["attempts"] == 200
    assert said["all"]["success_rate"] == 0.99
    assert 25 <= said["all"]["attempt_ms_p50"] <= 50
    assert [one["name"] for one in said["subscriptions"]] == ["bad", "good"]
    assert said["subscriptions"][0]["failed"] == 1234


def test_stats_of_one_subscription_by_the_hour(installation: dict[str, Subscription]) -> None:
    hour(installation["good"], ago=1, succeeded=1, failed=1)
    assert "good: 502 attempts in 24 h, 1 failed, 99.80 % succeeded" in stats(
        "--subscription", "good"
    )
    said = json.loads(stats("--subscription", "good", "--hours", "3", "--json"))
    assert [one["succeeded"] for one in said["by_hour"]] == [0, 1, 500]
    with pytest.raises(CommandError, match="nobody"):
        stats("--subscription", "nobody")


def test_stats_of_a_tenant_say_nothing_of_others(installation: dict[str, Subscription]) -> None:
    theirs = make_subscription(name="theirs", tenant="acme")
    hour(theirs, succeeded=7)
    said = json.loads(stats("--tenant", "acme", "--json"))
    assert said["all"] is None
    assert [one["name"] for one in said["subscriptions"]] == ["theirs"]
    assert "good" not in stats("--tenant", "acme")


def test_the_figures_take_little_time_with_many_subscriptions(admin_client: Client) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO deliveries_hourrollup SELECT date_trunc('hour', now()) - h * interval "
            "'1 hour', gen_random_uuid(), 1, 1 FROM generate_series(0, 23) h, "
            "generate_series(1, 1000)"
        )
    for ago in range(1440):
        minute(ago, succeeded=ago)
    make_subscription(id=uuid.uuid4())
    read(admin_client)
    started = time.monotonic()
    read(admin_client)
    assert time.monotonic() - started < 1.0
