"""The admin of subscriptions: its list, its actions, and whose they are."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone

from subscriptions import circuit
from subscriptions.admin.display import sparkline, state_explanation
from subscriptions.models import AuditEntry, Subscription
from subscriptions.secrets import crypto
from tests.commands import run
from tests.factories import failure_report, make_subscription
from tests.subscriptions.in_the_admin import (
    LIST,
    act,
    change_page,
    fields,
    shown_form,
)
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db


def test_the_list_shows_states_hosts_and_errors(admin_client: Client) -> None:
    make_subscription(name="a", url="https://a.example.com/secret-path")
    circuit.pause([make_subscription(name="b").pk])
    tripped = make_subscription(name="it's c")
    trip(tripped, "503 <b>no</b>")
    page = admin_client.get(LIST).content.decode()
    for chip in ("chip-good", "chip-idle", "chip-bad"):
        assert chip in page
    assert "a.example.com" in page
    assert "One subscription is tripped" in page
    assert "<b>no</b>" not in page
    title = re.search(r'chip-bad" popovertarget="[^"]+" title="([^"]+)"', page)
    assert title is not None
    told = html.unescape(title[1])
    assert told.startswith("Tripped at ")
    assert "503 <b>no</b>" in told
    assert "manage.py reset_circuit 'it'\"'\"'s c'" in told


def test_the_banner_counts_the_tripped_and_goes_away(admin_client: Client) -> None:
    pair = [make_subscription(), make_subscription()]
    assert "tripped-banner" not in admin_client.get(LIST).content.decode()
    for one in pair:
        trip(one)
    page = admin_client.get(LIST).content.decode()
    assert "2 subscriptions are tripped" in page
    assert 'href="?state=tripped"' in page


@pytest.mark.parametrize("state", ["active", "failing", "paused", "tripped"])
def test_the_list_is_filtered_by_state(admin_client: Client, state: str) -> None:
    make_subscription(name="the active one")
    failing = make_subscription(name="the failing one")
    with transaction.atomic():
        circuit.record([failure_report(failing, 3)])
    circuit.pause([make_subscription(name="the paused one").pk])
    trip(make_subscription(name="the tripped one"))
    assert listed(admin_client, state=state) == [f"the {state} one"]
    assert len(listed(admin_client)) == 4
    page = admin_client.get(LIST, {"state": "failing"}).content.decode()
    assert "FAILING · 3/5" in page


def test_the_list_is_filtered_by_what_was_never_delivered(admin_client: Client) -> None:
    make_subscription(name="new")
    worked = make_subscription(name="worked once")
    Subscription.objects.filter(pk=worked.pk).update(last_success_at=timezone.now())
    assert listed(admin_client, delivered="never") == ["new"]


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("shop.example.com", ["shop", "shop with a port"]),
        ("SHOP.example.com", ["shop", "shop with a port"]),
        ("shop.example.com:8443", ["shop with a port"]),
        ("example.com", []),
        ("shop.example.com/hook", []),
        (".*", []),
        (" ", ["elsewhere", "shop", "shop with a port"]),
    ],
)
def test_the_list_is_filtered_by_host(admin_client: Client, host: str, found: list[str]) -> None:
    make_subscription(name="shop", url="https://shop.example.com/hook")
    make_subscription(name="shop with a port", url="https://Shop.example.com:8443/hook")
    make_subscription(name="elsewhere", url="https://example.org/shop.example.com")
    assert sorted(listed(admin_client, host=host)) == found


def test_filters_add_up(admin_client: Client) -> None:
    make_subscription(name="a", url="https://a.example.com/")
    trip(make_subscription(name="b", url="https://a.example.com/x"))
    trip(make_subscription(name="c", url="https://c.example.com/"))
    asked = {"state": "tripped", "host": "a.example.com", "delivered": "never", "tenant": ""}
    assert listed(admin_client, **asked) == ["b"]


def test_what_is_sent_without_tls_is_warned_of(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    make_subscription(name="open", url="http://open.example.com/hook")
    make_subscription(name="closed", url="https://closed.example.com/hook")
    assert admin_client.get(LIST).content.decode().count(">http</button>") == 1


def test_two_patterns_are_shown_and_the_rest_is_opened(admin_client: Client) -> None:
    make_subscription(topic_patterns=["a.b", "c.>", "d.*", "e"])
    page = admin_client.get(LIST).content.decode()
    assert "<code>a.b</code> <code>c.&gt;</code>" in page
    assert ">+2</button>" in page
    assert "a.b, c.&gt;, d.*, e</span>" in page


# What went well, as bars.


def hours(*numbers: tuple[int, int]) -> list[tuple[datetime, int, int]]:
    start = datetime(2026, 4, 24, 16, tzinfo=UTC)
    return [(start + timedelta(hours=n), *one) for n, one in enumerate(numbers)]


@pytest.mark.parametrize(
    ("numbers", "percent", "good", "bad"),
    [
        ([(0, 0), (10, 0)], "100\u00a0%", [20], []),
        ([(0, 0), (0, 3)], "0\u00a0%", [], [20]),
        ([(5, 5), (0, 0), (1, 0)], "54.54\u00a0%", [10, 2], [10]),
        # One failure among a million can be seen.
        ([(999_999, 1)], "99.99\u00a0%", [20], [1.5]),
        ([(1, 999_999)], "0.01\u00a0%", [1.5], [20]),
    ],
)
def test_a_sparkline_has_a_bar_an_hour_and_says_the_share(
    numbers: list[tuple[int, int]], percent: str, good: list[float], bad: list[float]
) -> None:
    shown = str(sparkline(hours(*numbers)))
    for kind, heights in (("good", good), ("bad", bad)):
        path = re.search(rf'class="spark-{kind}" d="([^"]+)"', shown)
        drawn = [
            float(height) for height in re.findall("h3v-([0-9.]+)h-3z", path[1] if path else "")
        ]
        assert drawn == heights
    assert f"<span>{percent}</span>" in shown
    assert f"attempts succeeded in the last {len(numbers)} hours" in shown


def test_breadcrumbs_show_a_name_as_it_is_and_an_app_once(admin_client: Client) -> None:
    one = make_subscription(name="local")
    page = admin_client.get(f"{LIST}{one.pk}/change/").content.decode()
    said = re.findall(r'tracking-tight">\s*(.*?)\s*</a >', page)
    assert said == ["Subscriptions", "local"]


def test_a_sparkline_of_nothing_is_a_dash() -> None:
    assert sparkline(hours((0, 0), (0, 0))) == "–"


def listed(client: Client, **query: str) -> list[str]:
    return [one.name for one in client.get(LIST, query).context["cl"].result_list]


def test_tripped_ones_come_first(admin_client: Client) -> None:
    make_subscription(name="a")
    trip(make_subscription(name="z"))
    assert [one.name for one in admin_client.get(LIST).context["cl"].result_list] == ["z", "a"]


@pytest.mark.parametrize("term", ["billi", "shop.example"])
def test_search_is_by_name_and_url(admin_client: Client, term: str) -> None:
    make_subscription(name="billing", url="https://shop.example.com/")
    make_subscription(name="other")
    result = admin_client.get(LIST, {"q": term}).context["cl"].result_list
    assert [one.name for one in result] == ["billing"]


def test_a_longer_list_needs_no_more_queries(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    def queries() -> int:
        with django_assert_max_num_queries(50) as captured:
            admin_client.get(LIST)
        return len(captured)

    make_subscription()
    few = queries()
    for _ in range(10):
        make_subscription()
    assert queries() == few


# Actions.


def test_resetting_says_what_it_did_and_what_it_left_alone(admin_client: Client) -> None:
    first, second, paused = (make_subscription() for _ in range(3))
    trip(first)
    trip(second)
    circuit.pause([paused.pk])
    assert act(admin_client, "reset_circuit", first, second, paused) == [
        "2 circuits were reset. What was held is being sent.",
        "1 of those chosen was not tripped.",
    ]
    states = [one.state for one in Subscription.objects.order_by("id")]
    assert states == ["active", "active", "paused"]
    assert next(entry.action for entry in AuditEntry.objects.of(first.pk)) == "reset"


def test_pausing_and_resuming_say_what_they_did(admin_client: Client) -> None:
    first, second = make_subscription(), make_subscription()
    assert act(admin_client, "pause", first) == [
        "1 subscription was paused. What was pending is held until they are resumed."
    ]
    assert act(admin_client, "pause", first, second)[1] == "1 of those chosen was paused already."
    assert act(admin_client, "resume", first, second) == [
        "2 subscriptions were resumed. What was held is being sent."
    ]
    assert act(admin_client, "resume", first, second) == [
        "No subscription was resumed: none of those chosen is paused any more.",
    ]


def test_a_secret_that_ended_is_not_listed(admin_client: Client) -> None:
    subscription = make_subscription()
    subscription.secrets.create(
        ciphertext=crypto.encrypt(b"x"), expires_at=timezone.now() - timedelta(hours=1)
    )
    assert admin_client.get(change_page(subscription)).content.decode().count("Made ") == 1


@pytest.mark.parametrize("headers", ["", "null", "[]", "7", "[" * 100_000])
def test_headers_of_every_kind_are_taken_or_refused_by_the_form(
    admin_client: Client, headers: str
) -> None:
    response = admin_client.post(f"{LIST}add/", fields(headers=headers))
    assert response.status_code == 200
    taken = headers in ("", "null")
    assert [one.headers for one in Subscription.objects.all()] == ([{}] if taken else [])


@pytest.mark.parametrize("chosen", ["nonsense", "\0", "1"])
def test_an_action_on_what_is_no_id_is_refused(admin_client: Client, chosen: str) -> None:
    make_subscription()
    response = admin_client.post(
        LIST, {"action": "pause", "_selected_action": [chosen]}, follow=True
    )
    assert response.status_code == 200
    assert [one.state for one in Subscription.objects.all()] == ["active"]


def test_a_page_of_what_is_no_id_is_not_found(admin_client: Client) -> None:
    for page in ("%00/change/", "%00/rotate-secret/", "%00/delete/", "%00/history/"):
        assert admin_client.get(LIST + page, follow=True).status_code in (200, 404)


def test_a_subscription_is_read_again_with_its_relations(db: None) -> None:
    subscription = make_subscription()
    subscription.refresh_from_db(fields=["secrets", "name"])
    assert subscription.name


# Tenants


def test_a_subscription_is_added_for_a_tenant_and_stays_with_it(admin_client: Client) -> None:
    make_subscription(name="billing")
    admin_client.post(f"{LIST}add/", fields(tenant="acme"))
    subscription = Subscription.objects.get(tenant="acme")
    page = admin_client.get(change_page(subscription))
    assert page.context["adminform"].form.fields["tenant"].disabled
    sent = shown_form(admin_client, subscription) | {"tenant": "other", "name": "new"}
    assert admin_client.post(change_page(subscription), sent).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.tenant, subscription.name) == ("acme", "new")
    make_subscription(name="taken", tenant="acme")
    sent = shown_form(admin_client, subscription) | {"name": "taken"}
    form = admin_client.post(change_page(subscription), sent).context["adminform"].form
    assert "has a subscription with this name already" in str(form.errors["name"])


def test_a_tenants_subscription_is_not_for_all_tenants(admin_client: Client) -> None:
    answer = admin_client.post(f"{LIST}add/", fields(tenant="acme", all_tenants="on"))
    assert "whose tenant is empty" in str(answer.context["adminform"].form.errors["all_tenants"])
    admin_client.post(f"{LIST}add/", fields(all_tenants="on"))
    assert Subscription.objects.get().all_tenants


@pytest.mark.parametrize("before", [True, False])
def test_whether_it_is_for_all_tenants_is_decided_when_it_is_added(
    admin_client: Client, before: bool
) -> None:
    subscription = make_subscription(all_tenants=before)
    page = admin_client.get(change_page(subscription))
    assert page.context["adminform"].form.fields["all_tenants"].disabled
    sent = shown_form(admin_client, subscription) | {"name": "new"}
    sent.pop("all_tenants", None)
    if not before:
        sent["all_tenants"] = "on"
    assert admin_client.post(change_page(subscription), sent).status_code == 302
    subscription.refresh_from_db()
    assert (subscription.all_tenants, subscription.name) == (before, "new")


def test_the_list_shows_tenants_and_narrows_to_one(admin_client: Client) -> None:
    own, acme, everything = (
        make_subscription(name="a"),
        make_subscription(name="b", tenant="acme & co"),
        make_subscription(name="c", all_tenants=True),
    )
    page = html.unescape(admin_client.get(LIST).content.decode())
    assert "?tenant=acme+%26+co" in page
    assert "all tenants</td>" in page

    def listed(**query: str) -> set[Subscription]:
        return set(admin_client.get(LIST, query).context["cl"].result_list)

    assert listed(tenant="acme & co") == listed(q="acme") == {acme}
    assert listed(tenant="") == {own, everything}


def test_the_hint_of_a_tripped_one_names_its_tenant(admin_client: Client) -> None:
    trip(make_subscription(name="billing", tenant="acme"))
    page = html.unescape(admin_client.get(LIST).content.decode())
    assert "manage.py reset_circuit billing --tenant acme" in page


@pytest.mark.parametrize(
    ("name", "tenant", "words"),
    [
        ("a b", "", "'a b'"),
        ("--all", "", "-- --all"),
        ("--all", "acme", "--tenant=acme -- --all"),
    ],
)
def test_the_hint_names_one_whatever_it_is_called(name: str, tenant: str, words: str) -> None:
    first, other = make_subscription(name=name, tenant=tenant), make_subscription()
    for one in (first, other):
        trip(one)
        one.refresh_from_db()
    command = state_explanation(first).partition("manage.py ")[2]
    assert command == f"reset_circuit {words}"
    run(*shlex.split(command))
    for one, state in ((first, "active"), (other, "tripped")):
        one.refresh_from_db()
        assert one.state == state
