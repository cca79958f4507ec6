"""Changing and deleting subscriptions, also by two at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from deliveries import publish
from deliveries.models import Delivery
from subscriptions import circuit
from subscriptions.models import SigningSecret, Subscription
from tests.api.calls import Caller
from tests.api.subscriptions import NEW, URL, caller, pointers, problem
from tests.factories import make_subscription, statuses
from tests.subscriptions.test_commands import trip

pytestmark = pytest.mark.django_db(transaction=True)

AtOnce = Callable[..., list[Any]]


@pytest.fixture
def subscription() -> Subscription:
    return make_subscription(**NEW)


def patch(client: Caller, subscription: Subscription, body: Any, **headers: str) -> Any:
    return client.call("PATCH", f"{URL}/{subscription.pk}", body, **headers)


def tag(client: Caller, subscription: Subscription) -> str:
    found: str = client.call("GET", f"{URL}/{subscription.pk}")["ETag"]
    return found


# Changed.


def test_only_what_is_named_is_changed(subscription: Subscription) -> None:
    client = caller()
    before = client.call("GET", f"{URL}/{subscription.pk}").data
    response = patch(client, subscription, {"name": "audit", "headers": {"X-A": "b"}})
    assert response.status_code == 200
    changed = {"name": "audit", "headers": {"X-A": "b"}, "updated_at": response.data["updated_at"]}
    assert response.data == before | changed
    assert client.call("GET", f"{URL}/{subscription.pk}").data == response.data


def test_nothing_is_changed_by_an_empty_change(subscription: Subscription) -> None:
    client = caller()
    before = tag(client, subscription)
    response = patch(client, subscription, {})
    assert (response.status_code, response["ETag"]) == (200, before)


def test_every_field_that_can_be_set_can_be_changed(subscription: Subscription) -> None:
    fields = {
        "name": "other",
        "url": "http://other.example.com/",
        "topic_patterns": ["x", "y.>"],
        "headers": {"X-A": "b"},
        "max_in_flight": 1000,
        "recovery": "manual",
        "enabled": False,
    }
    response = patch(caller(), subscription, fields)
    assert fields.items() <= response.data.items()
    assert response.data["warnings"] == ["http"]
    row = Subscription.objects.get()
    assert {name: getattr(row, name) for name in fields} == fields


def test_groups_replace_the_patterns_alone_or_with_others(
    subscription: Subscription, configure: Callable[..., None]
) -> None:
    configure(topic_groups={"attacks": ("attacker.>", "a")})
    client = caller()
    changed = patch(client, subscription, {"groups": ["attacks"]})
    assert changed.data["topic_patterns"] == ["attacker.>", "a"]
    changed = patch(client, subscription, {"groups": ["attacks"], "topic_patterns": ["b", "a"]})
    assert changed.data["topic_patterns"] == ["b", "a", "attacker.>"]
    assert pointers(patch(client, subscription, {"groups": []})) == ["/topic_patterns"]


def test_another_url_begins_a_new_epoch(subscription: Subscription) -> None:
    patch(caller(), subscription, {"url": "https://other.example.com/"})
    assert Subscription.objects.get().circuit_epoch == subscription.circuit_epoch + 1


def test_enabling_a_tripped_one_resets_it_and_sends_what_was_held(
    subscription: Subscription,
) -> None:
    trip(subscription)
    publish("order.created", {})
    assert statuses(subscription) == {"held": 1}
    shown = patch(caller(), subscription, {"enabled": True}).data
    assert shown["state"] == "active"
    assert (shown["auto_disabled_at"], shown["consecutive_failures"], shown["last_error"]) == (
        None, 0, "",
    )  # fmt: skip
    assert statuses(subscription) == {"pending": 1}
    assert patch(caller(), subscription, {"enabled": True}).status_code == 200


def test_pausing_holds_what_is_pending_and_resuming_sends_it(subscription: Subscription) -> None:
    publish("order.created", {})
    client = caller()
    assert patch(client, subscription, {"enabled": False}).data["state"] == "paused"
    assert statuses(subscription) == {"held": 1}
    publish("order.created", {})
    assert statuses(subscription) == {"held": 1}
    assert patch(client, subscription, {"enabled": True}).data["state"] == "active"
    assert statuses(subscription) == {"pending": 1}


def test_pausing_a_tripped_one_ends_its_probes(subscription: Subscription) -> None:
    trip(subscription)
    assert Subscription.objects.get().next_probe_at is not None
    shown = patch(caller(), subscription, {"enabled": False}).data
    assert (shown["state"], shown["next_probe_at"]) == ("paused", None)


def test_a_change_of_other_fields_leaves_a_tripped_one_tripped(
    subscription: Subscription,
) -> None:
    trip(subscription)
    shown = patch(caller(), subscription, {"name": "other"}).data
    assert shown["state"] == "tripped"


def test_a_subscription_with_something_invalid_can_still_be_paused(
    subscription: Subscription,
) -> None:
    Subscription.objects.update(
        url="http://127.0.0.1/", headers={"Host": "x"}, name=" ", topic_patterns=["b."]
    )
    client = caller()
    assert patch(client, subscription, {"enabled": False}).data["state"] == "paused"
    assert pointers(patch(client, subscription, {"url": "http://127.0.0.2/"})) == ["/url"]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"tenant": "acme"}, "/tenant"),
        ({"tenant": ""}, "/tenant"),
        ({"id": "1"}, "/id"),
        ({"secret": "whsec_x"}, "/secret"),
        ({"state": "paused"}, "/state"),
        ({"last_error": ""}, "/last_error"),
        ({"auto_disabled_at": None}, "/auto_disabled_at"),
        ({"circuit_epoch": 7}, "/circuit_epoch"),
        ({"Name": "x"}, "/Name"),
        ({"a/b~c": "x"}, "/a~1b~0c"),
        ({"name": None}, "/name"),
        ({"enabled": None}, "/enabled"),
        ({"enabled": 0}, "/enabled"),
        ({"max_in_flight": True}, "/max_in_flight"),
        ({"max_in_flight": 2**40}, "/max_in_flight"),
        ({"headers": None}, "/headers"),
        ({"headers": {"Webhook-Id": "1"}}, "/headers"),
        ({"topic_patterns": ["a", "b..c", "d"]}, "/topic_patterns/1"),
        ({"topic_patterns": [""]}, "/topic_patterns/0"),
        ({"topic_patterns": None}, "/topic_patterns"),
        ({"recovery": "Manual"}, "/recovery"),
        ({"url": "http://10.1.2.3/"}, "/url"),
        ({"name": "x", "url": "nonsense"}, "/url"),
        ({"all_tenants": True}, "/all_tenants"),
    ],
)
def test_what_cannot_be_set_is_422_and_nothing_is_changed(
    subscription: Subscription, change: dict[str, Any], place: str
) -> None:
    before = Subscription.objects.values().get()
    assert pointers(patch(caller(), subscription, change)) == [place]
    assert Subscription.objects.values().get() == before


def test_a_name_that_is_taken_is_409_and_nothing_is_changed(subscription: Subscription) -> None:
    make_subscription(name="taken")
    make_subscription(name="elsewhere", tenant="acme")
    client = caller()
    response = patch(client, subscription, {"name": "taken", "enabled": False})
    problem(response, 409, "duplicate-name")
    subscription.refresh_from_db()
    assert (subscription.name, subscription.state) == ("billing", "active")
    assert patch(client, subscription, {"name": "elsewhere"}).status_code == 200


# Two operators.


def test_a_tag_that_is_out_of_date_changes_nothing(subscription: Subscription) -> None:
    client = caller()
    old = tag(client, subscription)
    first = patch(client, subscription, {"name": "first"}, If_Match=old)
    assert first.status_code == 200
    response = patch(client, subscription, {"name": "second"}, If_Match=old)
    problem(response, 412, "changed-meanwhile")
    assert response["ETag"] == first["ETag"] == tag(client, subscription) != old
    assert Subscription.objects.get().name == "first"
    assert patch(client, subscription, {"name": "b"}, If_Match=first["ETag"]).status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x"}, {"url": "https://x.example.com/"}, {"topic_patterns": ["x"]},
        {"headers": {"X-A": "b"}}, {"max_in_flight": 2}, {"recovery": "manual"},
        {"enabled": False},
    ],
)  # fmt: skip
def test_the_tag_changes_with_all_that_can_be_set(
    subscription: Subscription, fields: dict[str, Any]
) -> None:
    client = caller()
    before = tag(client, subscription)
    after = patch(client, subscription, fields)["ETag"]
    assert after != before
    assert after == tag(client, subscription)


def test_the_tag_changes_with_a_trip_and_not_with_the_counters(
    subscription: Subscription,
) -> None:
    client = caller()
    before = tag(client, subscription)
    Subscription.objects.update(
        consecutive_failures=3, last_error="x", last_success_at=timezone.now()
    )
    assert tag(client, subscription) == before
    trip(subscription)
    assert tag(client, subscription) != before


@pytest.mark.parametrize("if_match", ['"other"', 'W/"{tag}"', "", "{tag}", '"', "*x"])
def test_what_is_not_this_tag_is_412(subscription: Subscription, if_match: str) -> None:
    client = caller()
    bare = tag(client, subscription).strip('"')
    response = patch(client, subscription, {"name": "x"}, If_Match=if_match.format(tag=bare))
    problem(response, 412, "changed-meanwhile")
    assert Subscription.objects.get().name == "billing"


def test_what_is_refused_anyhow_is_refused_for_that(subscription: Subscription) -> None:
    make_subscription(name="taken")
    client = caller()
    response = patch(client, subscription, {"topic_patterns": ["a..b"]}, If_Match='"other"')
    assert pointers(response) == ["/topic_patterns/0"]
    response = patch(client, subscription, {"name": "taken"}, If_Match='"other"')
    problem(response, 409, "duplicate-name")


@pytest.mark.parametrize("if_match", ["*", '"{tag}"', '"other", "{tag}"'])
def test_a_tag_may_be_one_of_several_or_any(subscription: Subscription, if_match: str) -> None:
    client = caller()
    bare = tag(client, subscription).strip('"')
    response = patch(client, subscription, {"name": "x"}, If_Match=if_match.format(tag=bare))
    assert response.status_code == 200


def test_of_those_that_change_it_at_once_with_the_same_tag_one_wins(
    subscription: Subscription, at_once: AtOnce
) -> None:
    key = caller().key
    for round_ in range(3):
        old = tag(Caller(key_text=key), subscription)

        def change(number: int, round_: int = round_, old: str = old) -> Any:
            client = Caller(key_text=key)
            body = {"name": f"by {round_} {number}", "max_in_flight": number + 1}
            return patch(client, subscription, body, If_Match=old)

        responses = at_once(change, 8)
        assert sorted(response.status_code for response in responses) == [200] + [412] * 7
        [won] = [response for response in responses if response.status_code == 200]
        row = Subscription.objects.get()
        assert (row.name, row.max_in_flight) == (won.data["name"], won.data["max_in_flight"])


def test_of_those_that_take_a_name_at_once_one_gets_it(at_once: AtOnce) -> None:
    key = caller().key
    made = at_once(lambda _: Caller(key_text=key).call("POST", URL, NEW), 8)
    assert sorted(response.status_code for response in made) == [201] + [409] * 7
    assert Subscription.objects.count() == SigningSecret.objects.count() == 1
    others = [make_subscription() for _ in range(8)]
    changed = at_once(lambda n: patch(Caller(key_text=key), others[n], {"name": "wanted"}), 8)
    assert sorted(response.status_code for response in changed) == [200] + [409] * 7


def test_changes_of_different_fields_at_once_are_all_kept(
    subscription: Subscription, at_once: AtOnce
) -> None:
    key = caller().key
    bodies: list[Any] = [
        {"name": "x"}, {"max_in_flight": 5}, {"recovery": "manual"}, {"headers": {"X-A": "b"}},
    ]  # fmt: skip
    at_once(lambda n: patch(Caller(key_text=key), subscription, bodies[n]), 4)
    row = Subscription.objects.get()
    for body in bodies:
        for name, value in body.items():
            assert getattr(row, name) == value


# Deleted.


def test_deleting_discards_what_waits_and_says_why(subscription: Subscription) -> None:
    publish("order.created", {})
    circuit.pause([subscription.pk])
    circuit.reset([subscription.pk])
    publish("order.created", {})
    trip(subscription)
    response = caller().call("DELETE", f"{URL}/{subscription.pk}")
    assert (response.status_code, response.content) == (204, b"")
    assert not {"Content-Length", "Content-Type"} & set(response.headers)
    assert not Subscription.objects.exists()
    assert not SigningSecret.objects.exists()
    assert {(one.status, one.last_error) for one in Delivery.objects.all()} == {
        ("discarded", "its subscription was deleted")
    }
    problem(caller().call("DELETE", f"{URL}/{subscription.pk}"), 404, "not-found")


def test_a_delete_with_a_tag_that_is_out_of_date_deletes_nothing(
    subscription: Subscription,
) -> None:
    client = caller()
    old = tag(client, subscription)
    patch(client, subscription, {"name": "other"})
    path = f"{URL}/{subscription.pk}"
    problem(client.call("DELETE", path, If_Match=old), 412, "changed-meanwhile")
    assert client.call("DELETE", path, If_Match=tag(client, subscription)).status_code == 204


def test_of_those_that_delete_it_at_once_one_has_done_it(
    subscription: Subscription, at_once: AtOnce
) -> None:
    key = caller().key
    path = f"{URL}/{subscription.pk}"
    codes = at_once(lambda _: Caller(key_text=key).call("DELETE", path).status_code, 6)
    assert sorted(codes) == [204] + [404] * 5


# Strangers.


@pytest.mark.parametrize("tenant", ["", "other"])
def test_a_strangers_subscription_is_404_and_stays_as_it_is(
    tenant: str, django_assert_num_queries: Any
) -> None:
    one = make_subscription(tenant="acme")
    client = caller(tenant=tenant)
    before = Subscription.objects.values().get()
    for method, path, body in (
        ("GET", "", None), ("PATCH", "", {"enabled": False}), ("DELETE", "", None),
        ("POST", "/reset", None), ("POST", "/rotate-secret", None), ("POST", "/test", None),
        ("POST", "/replay", None), ("GET", "/stats", None),
    ):  # fmt: skip
        problem(client.call(method, f"{URL}/{one.pk}{path}", body), 404, "not-found")
    assert Subscription.objects.values().get() == before
    assert one.secrets.count() == 1


def test_one_for_all_tenants_is_not_for_a_bound_key() -> None:
    one = make_subscription(all_tenants=True)
    for tenant in ("", "acme"):
        client = caller(tenant=tenant)
        stolen = patch(client, one, {"url": "https://thief.example.com/"})
        problem(stolen, 404, "not-found")
    assert patch(caller(), one, {"max_in_flight": 3}).status_code == 200


def test_one_for_all_tenants_is_so_for_good() -> None:
    one = make_subscription(all_tenants=True, topic_patterns=["order.created"])
    publish("order.created", {}, tenant="acme")
    assert Delivery.objects.filter(event__tenant="acme").count() == 1
    assert pointers(patch(caller(), one, {"all_tenants": False})) == ["/all_tenants"]
    stolen = patch(caller(tenant=""), one, {"url": "https://thief.example.com/"})
    problem(stolen, 404, "not-found")


def test_no_connection_is_left_in_a_transaction(subscription: Subscription) -> None:
    client = caller()
    patch(client, subscription, {"name": "x"}, If_Match='"no"')
    patch(client, subscription, {"url": "nonsense"})
    assert not connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE state = 'idle in transaction' AND datname = current_database()"
        )
        assert cursor.fetchone() == (0,)
