"""Making, listing and reading subscriptions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from deliveries import publish
from deliveries.models import Delivery
from subscriptions import circuit
from subscriptions.models import Subscription
from subscriptions.secrets import crypto, signing_secrets
from tests.api.calls import Caller
from tests.api.subscriptions import NEW, URL, caller, pointers, problem
from tests.factories import make_subscription
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db


def stored(subscription_id: str) -> list[str]:
    secrets = Subscription.objects.get(pk=subscription_id).secrets.live()
    return [crypto.decrypt(secret.ciphertext).decode() for secret in secrets]


# Made.


def test_a_new_subscription_is_answered_with_its_secret_this_once() -> None:
    client = caller()
    response = client.call("POST", URL, NEW)
    assert response.status_code == 201
    assert response["Cache-Control"] == "no-store"
    made = response.data
    assert [made["secret"]] == stored(made["id"])
    assert response["Location"] == f"{URL}/{made['id']}"
    read = client.call("GET", response["Location"])
    assert read.data == {name: value for name, value in made.items() if name != "secret"}
    assert read["ETag"] == response["ETag"]
    for path in ("", f"/{made['id']}", f"/{made['id']}/stats"):
        assert b"whsec_" not in client.call("GET", URL + path).content


def test_every_field_that_can_be_set_is_taken() -> None:
    fields = {
        **NEW,
        "tenant": "",
        "all_tenants": True,
        "headers": {"X-Team": "blue"},
        "max_in_flight": 3,
        "recovery": "manual",
        "enabled": False,
    }
    made = caller().call("POST", URL, fields).data
    assert fields.items() <= made.items()
    assert made["state"] == "paused"
    row = Subscription.objects.get()
    assert {name: getattr(row, name) for name in fields} == fields


def test_what_is_left_out_has_the_defaults_of_the_settings(configure: Callable[..., None]) -> None:
    configure(max_in_flight=7, circuit_recovery="manual")
    made = caller().call("POST", URL, NEW).data
    assert (made["max_in_flight"], made["recovery"]) == (7, "manual")
    assert (made["state"], made["headers"], made["tenant"]) == ("active", {}, "")


def test_a_secret_that_is_given_is_used_and_not_repeated() -> None:
    given = signing_secrets.generate()
    response = caller().call("POST", URL, {**NEW, "secret": given})
    assert response.data["secret"] is None
    assert stored(response.data["id"]) == [given]
    assert given.encode() not in response.content


@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "plain-Canary", 5, ["whsec_Canary"], None])
def test_what_is_no_secret_is_refused_and_not_repeated(secret: Any) -> None:
    response = caller().call("POST", URL, {**NEW, "secret": secret})
    assert pointers(response) == ["/secret"]
    assert b"c2hvcnQ" not in response.content
    assert b"Canary" not in response.content
    assert not Subscription.objects.exists()


def test_groups_stand_for_their_patterns(configure: Callable[..., None]) -> None:
    configure(topic_groups={"attacks": ("attacker.>", "order.*"), "rest": ("x",)})
    made = caller().call("POST", URL, {**NEW, "groups": ["attacks"]}).data
    assert made["topic_patterns"] == ["order.*", "attacker.>"]
    made = caller().call(
        "POST", URL, {"name": "b", "url": NEW["url"], "groups": ["rest", "attacks"]}
    )
    assert made.data["topic_patterns"] == ["x", "attacker.>", "order.*"]


def test_a_group_that_does_not_exist_is_named_with_its_place(
    configure: Callable[..., None],
) -> None:
    configure(topic_groups={"attacks": ("attacker.>",)})
    response = caller().call("POST", URL, {**NEW, "groups": ["attacks", "nothing"]})
    assert pointers(response) == ["/groups/1"]
    assert "'nothing'" in response.data["detail"]
    assert "'attacks'" in response.data["detail"]


def test_a_name_that_is_taken_is_409() -> None:
    make_subscription(name="billing")
    found = problem(caller().call("POST", URL, NEW), 409, "duplicate-name")
    assert found["errors"][0]["pointer"] == "/name"
    assert Subscription.objects.count() == 1


def test_a_name_is_taken_within_its_tenant_only() -> None:
    make_subscription(name="billing", tenant="other")
    assert caller().call("POST", URL, NEW).status_code == 201
    response = caller().call("POST", URL, {**NEW, "tenant": "acme"})
    assert (response.status_code, response.data["tenant"]) == (201, "acme")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1/hook", "loopback"),
        ("https://169.254.169.254/latest", "metadata"),
        ("https://[::ffff:10.0.0.1]/", "private"),
        ("https://localhost:8000/", "this machine itself"),
        ("ftp://example.com/", "use https or http"),
        ("https://name:Canary@example.com/", "user name or password"),
        ("example.com/hook", "not a full URL"),
        ("https://example.com/#a", "fragment"),
        ("https://example.com/\0", "does not print"),
        ("https://example.com/" + "a" * 2000, "at most 2000"),
        ("", "blank"),
    ],
)
def test_a_forbidden_destination_is_422_with_the_reason(url: str, reason: str) -> None:
    response = caller().call("POST", URL, {**NEW, "url": url})
    assert set(pointers(response)) == {"/url"}
    assert any(reason in error["detail"] for error in response.data["errors"])
    assert b"Canary" not in response.content


def test_an_allowed_network_is_no_forbidden_destination(configure: Callable[..., None]) -> None:
    import ipaddress

    configure(allowed_networks=(ipaddress.ip_network("10.0.0.0/8"),))
    assert caller().call("POST", URL, {**NEW, "url": "http://10.0.0.1/"}).status_code == 201


@pytest.mark.parametrize("pattern", ["b..c", "", "a b", "a.>.b", "a*", "a\0", "a" * 256, "\u202e"])
def test_a_bad_pattern_is_named_with_its_place(pattern: str) -> None:
    # The same pattern twice before it: places are those of the body.
    patterns = ["a", "a", pattern, "c.>"]
    response = caller().call("POST", URL, {**NEW, "topic_patterns": patterns})
    assert pointers(response) == ["/topic_patterns/2"]
    if pattern.isprintable() and pattern:
        assert pattern[:80] in response.data["errors"][0]["detail"]


def test_all_that_is_wrong_is_said_at_once() -> None:
    body = {"name": " a", "url": "http://10.0.0.1", "topic_patterns": ["b.", ">.a"]}
    assert sorted(pointers(caller().call("POST", URL, body))) == [
        "/name", "/topic_patterns/0", "/topic_patterns/1", "/url",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"max_in_flight": True}, "/max_in_flight"),
        ({"max_in_flight": "3"}, "/max_in_flight"),
        ({"max_in_flight": 1.5}, "/max_in_flight"),
        ({"max_in_flight": 0}, "/max_in_flight"),
        ({"max_in_flight": 1001}, "/max_in_flight"),
        ({"max_in_flight": 2**53 - 1}, "/max_in_flight"),
        ({"max_in_flight": None}, "/max_in_flight"),
        ({"enabled": 1}, "/enabled"),
        ({"enabled": "false"}, "/enabled"),
        ({"enabled": None}, "/enabled"),
        ({"all_tenants": "yes"}, "/all_tenants"),
        ({"all_tenants": True, "tenant": "acme"}, "/all_tenants"),
        ({"recovery": "sometimes"}, "/recovery"),
        ({"recovery": None}, "/recovery"),
        ({"headers": None}, "/headers"),
        ({"headers": []}, "/headers"),
        ({"headers": {"X-A": 1}}, "/headers/X-A"),
        ({"headers": {"X-A": {"b": "c"}}}, "/headers/X-A"),
        ({"headers": {"Host": "elsewhere"}}, "/headers"),
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "/headers"),
        ({"headers": {"X-A": "a" * 10_000}}, "/headers"),
        ({"headers": {"ä": "b"}}, "/headers"),
        ({"headers": {"X-A": "\0"}}, "/headers"),
        ({"topic_patterns": "order.*"}, "/topic_patterns"),
        ({"topic_patterns": None}, "/topic_patterns"),
        ({"topic_patterns": []}, "/topic_patterns"),
        ({"topic_patterns": ["a"] * 1 + [f"b{n}" for n in range(1000)]}, "/topic_patterns"),
        ({"topic_patterns": ["a"] * 1001}, "/topic_patterns"),
        ({"topic_patterns": [1]}, "/topic_patterns/0"),
        ({"topic_patterns": [["a"]]}, "/topic_patterns/0"),
        ({"topic_patterns": {"0": "a"}}, "/topic_patterns"),
        ({"groups": "attacks"}, "/groups"),
        ({"groups": [None]}, "/groups/0"),
        ({"name": ""}, "/name"),
        ({"name": "a" * 201}, "/name"),
        ({"name": "two\nlines"}, "/name"),
        ({"name": "a\0b"}, "/name"),
        ({"name": " a"}, "/name"),
        ({"name": 5}, "/name"),
        ({"name": None}, "/name"),
        ({"tenant": "a" * 65}, "/tenant"),
        ({"tenant": "a\0"}, "/tenant"),
        ({"tenant": None}, "/tenant"),
        ({"tenant": " a"}, "/tenant"),
        ({"id": "0199f3a2-7c1e-7b44-9d0f-3c5a2b1e8f60"}, "/id"),
        ({"state": "active"}, "/state"),
        ({"consecutive_failures": 0}, "/consecutive_failures"),
        ({"colour": "blue"}, "/colour"),
    ],
)
def test_a_wrong_value_is_422_with_its_place_and_nothing_is_made(
    change: dict[str, Any], place: str
) -> None:
    response = caller().call("POST", URL, {**NEW, **change})
    assert set(pointers(response)) == {place}
    assert not Subscription.objects.exists()


@pytest.mark.parametrize("name", ["url", "name"])
def test_a_missing_field_is_named(name: str) -> None:
    body = {field: value for field, value in NEW.items() if field != name}
    assert pointers(caller().call("POST", URL, body)) == [f"/{name}"]


@pytest.mark.parametrize("body", [b"[]", b"null", b"5", b'"a"', b"true"])
def test_a_body_that_is_no_object_is_422(body: bytes) -> None:
    problem(caller().call("POST", URL, body), 422, "invalid")


def test_a_lone_surrogate_is_refused_wherever_it_is() -> None:
    body = json.dumps({**NEW, "name": "a\ud800"}).encode()
    assert pointers(caller().call("POST", URL, body)) == ["/name"]


def test_unusual_names_are_names() -> None:
    for name in ("ü ber-all", "日本", "a/b", "%00", "' OR 1=1 --", "<b>"):
        made = caller().call("POST", URL, {**NEW, "name": name})
        assert (made.status_code, made.data["name"]) == (201, name)


def test_an_event_reaches_it_from_the_answer_on() -> None:
    made = caller().call("POST", URL, NEW).data
    publish("order.created", {})
    assert [str(delivery.subscription_id) for delivery in Delivery.objects.all()] == [made["id"]]


def test_a_key_that_is_bound_to_a_tenant_makes_subscriptions_of_that_tenant() -> None:
    client = caller(tenant="acme")
    assert client.call("POST", URL, NEW).data["tenant"] == "acme"
    assert client.call("POST", URL, {**NEW, "name": "b", "tenant": "acme"}).status_code == 201
    problem(client.call("POST", URL, {**NEW, "tenant": "other"}), 403, "other-tenant")
    problem(client.call("POST", URL, {**NEW, "tenant": ""}), 403, "other-tenant")
    assert {row.tenant for row in Subscription.objects.all()} == {"acme"}


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_a_bound_key_makes_nothing_that_gets_the_events_of_all_tenants(tenant: str) -> None:
    body = {**NEW, "all_tenants": True}
    problem(caller(tenant=tenant).call("POST", URL, body), 403, "other-tenant")
    assert not Subscription.objects.exists()


# Read.


def test_each_state_is_shown() -> None:
    client = caller()
    active, paused, tripped = (make_subscription() for _ in range(3))
    circuit.pause([paused.pk])
    trip(tripped)
    shown = {
        state: client.call("GET", f"{URL}/{one.pk}").data
        for state, one in (("active", active), ("paused", paused), ("tripped", tripped))
    }
    for state, found in shown.items():
        assert found["state"] == state
    assert shown["tripped"]["last_error"] == "503 Service Unavailable"
    assert shown["tripped"]["auto_disabled_at"].endswith("Z")
    assert shown["tripped"]["next_probe_at"] is not None


def test_what_there_is_to_warn_of() -> None:
    client = caller()

    def warnings(**fields: Any) -> list[str]:
        one = make_subscription()
        Subscription.objects.filter(pk=one.pk).update(**fields)
        found: list[str] = client.call("GET", f"{URL}/{one.pk}").data["warnings"]
        return found

    assert warnings() == []
    assert warnings(url="HTTP://example.com/") == ["http"]
    assert warnings(headers={"Host": "a", "X-B": "c"}) == ["ignored-headers"]
    assert warnings(headers=[1, 2]) == ["ignored-headers"]
    assert warnings(headers={"X-A": 5}) == ["ignored-headers"]
    bare = make_subscription()
    bare.secrets.all().delete()
    assert client.call("GET", f"{URL}/{bare.pk}").data["warnings"] == ["no-secret"]


@pytest.mark.parametrize(
    "wrong",
    ["0199f3a2-7c1e-7b44-9d0f-3c5a2b1e8f60", "1", "billing", "%00", "a" * 1000, "..%2f", "%F0%9F"],
)
def test_an_id_that_nothing_has_is_404(wrong: str) -> None:
    make_subscription(name="billing")
    problem(caller().call("GET", f"{URL}/{wrong}"), 404, "not-found")


# Listed.


def names(client: Caller, query: str = "") -> list[str]:
    response = client.call("GET", f"{URL}?{query}")
    assert response.status_code == 200, response.content
    return [one["name"] for one in response.data["data"]]


def test_a_list_costs_the_same_number_of_queries_whatever_its_length() -> None:
    client = caller()
    client.call("GET", URL)  # writes the key's last use
    counts = []
    for _ in range(2):
        make_subscription()
        with CaptureQueriesContext(connection) as made:
            client.call("GET", URL)
        counts.append(len(made))
    assert counts == [2, 2], "the key, and the page"


def test_pages_stay_right_while_rows_are_added_and_removed() -> None:
    client = caller()
    made = [make_subscription(name=f"n{number}") for number in range(5)]
    first = client.call("GET", f"{URL}?limit=2").data
    assert [one["name"] for one in first["data"]] == ["n4", "n3"]
    make_subscription(name="new")
    made[3].delete()
    second = client.call("GET", f"{URL}?limit=2&cursor={first['next_cursor']}").data
    assert [one["name"] for one in second["data"]] == ["n2", "n1"]
    third = client.call("GET", f"{URL}?limit=2&cursor={second['next_cursor']}").data
    assert [one["name"] for one in third["data"]] == ["n0"]
    assert third["next_cursor"] is None


def test_the_filters() -> None:
    client = caller()
    make_subscription(name="a", topic_patterns=["order.*"], url="https://A.example.com/x")
    make_subscription(
        name="b", topic_patterns=["x", "order.>"], url="http://a.example.com:81/", tenant="acme"
    )
    make_subscription(name="c", topic_patterns=["*.created"], url="https://a.example.com.evil/")
    make_subscription(name="d", topic_patterns=[">"], url="https://b.example.com?a.example.com/")
    circuit.pause([Subscription.objects.get(name="c").pk])
    trip(Subscription.objects.get(name="d"))
    assert names(client) == ["d", "c", "b", "a"]
    assert names(client, "state=paused") == ["c"]
    assert names(client, "state=tripped") == ["d"]
    assert names(client, "state=active") == ["b", "a"]
    assert names(client, "host=a.example.COM") == ["b", "a"]
    assert names(client, "host=a.example.com:81") == ["b"]
    assert names(client, "host=aXexample.com") == []
    assert names(client, "tenant=acme") == ["b"]
    assert names(client, "tenant=") == ["d", "c", "a"]
    assert names(client, "tenant=nobody") == []
    assert names(client, "topic=order.created&state=active&host=a.example.com") == ["b", "a"]
    assert names(client, "topic=order.created&tenant=acme") == ["b"]


def test_the_topic_filter_lists_those_that_an_event_of_it_reaches() -> None:
    client = caller()
    for number, patterns in enumerate(
        [["order.*"], ["order.>"], ["order.created"], ["*.*"], ["*"], [">"], ["x", "*.created"]]
    ):
        make_subscription(name=str(number), topic_patterns=patterns)
    circuit.pause([Subscription.objects.get(name="2").pk])
    trip(Subscription.objects.get(name="1"))
    for topic in ("order.created", "order", "order.created.now", "x", "a.b", "1.2.3.4.5.6.7.8.9.0"):
        Delivery.objects.all().delete()
        publish(topic, {})
        reached = [delivery.subscription.name for delivery in Delivery.objects.all()]
        assert sorted(names(client, f"topic={topic}")) == sorted(reached), topic


@pytest.mark.parametrize(
    ("query", "place"),
    [
        ("state=broken", "state"),
        ("topic=a..b", "topic"),
        ("topic=a.*", "topic"),
        ("topic=%00", "topic"),
        ("host=a/b", "host"),
        ("host=%00", "host"),
        ("host=", "host"),
        ("tenant=%00", "tenant"),
        ("tenant=" + "a" * 65, "tenant"),
        ("limit=0", "limit"),
        ("limit=1000", "limit"),
        ("limit=x", "limit"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_422(query: str, place: str) -> None:
    assert pointers(caller().call("GET", f"{URL}?{query}")) == [place]


def test_a_cursor_of_something_else_is_422() -> None:
    for wrong in ("abc", ""):
        response = caller().call("GET", f"{URL}?cursor={wrong}")
        assert pointers(response, "bad-cursor") == ["cursor"]


def test_a_bound_key_lists_its_own_tenants_subscriptions_alone() -> None:
    for tenant in ("", "acme", "other"):
        make_subscription(name=f"of {tenant or 'us'}", tenant=tenant)
    make_subscription(name="of all", all_tenants=True)
    assert names(caller(tenant="acme")) == ["of acme"]
    assert names(caller(tenant="acme"), "tenant=other") == []
    # One for all tenants has their events: who could change its URL would have them too.
    assert names(caller(tenant="")) == ["of us"]
    assert len(names(caller())) == 4
