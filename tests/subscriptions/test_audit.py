"""The audit: each change is an entry, whoever makes it, and from wherever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api.keys import create_key, revoke
from api.models import ApiKey
from deliveries import publish
from deliveries.keeping.discard import discard
from deliveries.keeping.replay import Chosen, replay, replay_chosen
from deliveries.models import Delivery
from subscriptions import audit, circuit
from subscriptions.circuit import Report, fuse, tally
from subscriptions.circuit.rules import degraded_at
from subscriptions.models import AuditEntry, Subscription, TripFuse
from tests.commands import run
from tests.factories import failure_report, make_subscription

pytestmark = pytest.mark.django_db(transaction=True)


def actions(subscription: Subscription | None = None) -> list[str]:
    """The oldest first."""
    entries = AuditEntry.objects.all() if subscription is None else of(subscription)
    return list(entries.order_by("id").values_list("action", flat=True))


def of(subscription: Subscription) -> Any:
    return AuditEntry.objects.of(subscription.pk)


def last(subscription: Subscription) -> AuditEntry:
    return of(subscription)[0]


def fail(subscription: Subscription, times: int = 5, **fields: Any) -> list[Any]:
    subscription.refresh_from_db()
    with transaction.atomic():
        return circuit.record([failure_report(subscription, times, **fields)])


def test_what_is_done_by_code_says_so_and_what_workers_do_is_by_the_system() -> None:
    subscription = make_subscription()
    assert actions(subscription) == ["created"]
    assert (last(subscription).via, last(subscription).actor) == ("code", "")
    fail(subscription)
    entry = last(subscription)
    assert (entry.action, entry.via, entry.actor) == ("tripped", "system", "")
    assert entry.subscription_name == subscription.name
    assert entry.detail["status_code"] == 500
    assert entry.detail["snippet"] == "out of order"
    assert entry.detail["failures"] == entry.detail["threshold"] == 5
    subscription.refresh_from_db()
    assert entry.detail["first_failure_at"] == subscription.failing_since.isoformat()  # type: ignore[union-attr]


def test_who_acts_is_said_by_who_calls() -> None:
    subscription = make_subscription()
    with audit.acting("alice", "admin"):
        circuit.pause([subscription.pk])
        with audit.acting(lambda: "bob", "api"):
            circuit.reset([subscription.pk])
    circuit.pause([subscription.pk])
    assert [(one.action, one.who) for one in of(subscription).order_by("id")][1:] == [
        ("paused", "alice (Admin)"),
        ("resumed", "bob (API)"),
        ("paused", "Code"),
    ]


def test_a_change_says_which_fields_changed_and_never_the_value_of_a_header() -> None:
    subscription = make_subscription(headers={"Authorization": "Bearer old", "X-One": "1"})
    old_url = subscription.url
    subscription.url = "https://other.example.com/hook"
    subscription.headers = {"Authorization": "Bearer new", "X-One": "1"}
    subscription.save()
    fields = last(subscription).detail["fields"]
    assert fields["url"] == {"old": old_url, "new": "https://other.example.com/hook"}
    assert fields["headers"]["old"] == {"Authorization": "***", "X-One": "***"}
    assert fields["headers"]["new"] == dict.fromkeys(
        ("Authorization", "X-One"), "*** (another value)"
    )
    subscription.save()
    assert actions(subscription) == ["created", "changed"]
    subscription.url += "?token=canary"
    subscription.save()
    fields = last(subscription).detail["fields"]
    assert fields["url"]["new"] == "https://other.example.com/hook?***"
    for text in map(str, AuditEntry.objects.values_list("detail", flat=True)):
        assert "Bearer" not in text
        assert "whsec_" not in text


def test_a_secret_that_is_rotated_is_not_in_its_entry() -> None:
    subscription = make_subscription()
    secret = subscription.rotate_secret()
    entry = last(subscription)
    assert entry.action == "rotated"
    assert entry.detail.keys() == {"old_secrets_end_at"}
    assert secret not in str(entry.detail)


def test_updates_of_many_say_old_and_new_by_one_insert() -> None:
    subscriptions = [make_subscription() for _ in range(5)]
    with CaptureQueriesContext(
        connection,
    ) as queries:
        Subscription.objects.update(max_in_flight=3)
    inserts = [query for query in queries if "INSERT INTO subscriptions_auditentry" in query["sql"]]
    assert len(inserts) == 1
    for subscription in subscriptions:
        assert last(subscription).detail == {"fields": {"max_in_flight": {"old": 10, "new": 3}}}
    Subscription.objects.update(max_in_flight=3)
    Subscription.objects.update(last_error="")
    assert all(actions(one) == ["created", "changed"] for one in subscriptions)
    with CaptureQueriesContext(connection) as queries:
        circuit.pause([one.pk for one in subscriptions])
    assert sum("INSERT INTO subscriptions_auditentry" in query["sql"] for query in queries) == 1


def test_what_is_rolled_back_left_no_entry() -> None:
    subscription = make_subscription()
    with pytest.raises(RuntimeError), transaction.atomic():
        circuit.pause([subscription.pk])
        raise RuntimeError
    assert actions(subscription) == ["created"]


def test_a_deleted_subscription_keeps_its_entries_and_its_name() -> None:
    subscription = make_subscription(tenant="acme")
    key, name = subscription.pk, subscription.name
    Subscription.objects.filter(pk=key).delete()
    entries = AuditEntry.objects.of(key)
    assert [one.action for one in entries] == ["deleted", "created"]
    assert entries[0].subject == f"{name} (acme)"


def test_twenty_threads_that_trip_a_circuit_agree_on_one_entry(at_once: Callable[..., Any]) -> None:
    subscription = make_subscription()
    at_once(lambda _: fail_as_found(subscription), 20)
    assert actions(subscription) == ["created", "tripped"]


def fail_as_found(subscription: Subscription) -> None:
    with transaction.atomic():
        circuit.record(
            [Report(subscription.pk, 0, tally([False] * 5), error="x", failed=True, answered=True)]
        )


def test_the_first_sign_before_a_trip_is_one_entry(at_once: Callable[..., Any]) -> None:
    assert [degraded_at(number) for number in (1, 2, 3, 4, 5, 10)] == [1, 2, 2, 3, 3, 6]
    subscription = make_subscription()
    for expected in (0, 0, 1, 1):
        fail(subscription, 1)
        assert actions(subscription).count("degraded") == expected
    assert last(subscription).detail["failures"] == 3
    subscription.refresh_from_db()
    with transaction.atomic():
        circuit.record([Report(subscription.pk, subscription.circuit_epoch, tally([True]))])
    for _ in range(4):
        fail(subscription, 1)
    assert actions(subscription).count("degraded") == 1, "not again within the hour"
    fail(subscription, 1)
    assert actions(subscription)[-1] == "tripped"


def test_a_probe_that_succeeds_is_a_recovery_and_an_operators_reset_a_reset() -> None:
    subscription = make_subscription()
    fail(subscription)
    subscription.refresh_from_db()
    circuit.reset([subscription.pk], epoch=subscription.circuit_epoch)
    assert (last(subscription).action, last(subscription).via) == ("recovered", "system")
    fail(subscription)
    circuit.reset([subscription.pk], discard_held=True)
    entry = last(subscription)
    assert (entry.action, entry.detail["held"]) == ("reset", "discarded")
    assert "tripped_at" in entry.detail


def test_the_fuse_is_in_the_audit() -> None:
    many = [make_subscription() for _ in range(20)]
    for one in many:
        fail(one, network=True)
    assert actions()[-1] == "fuse_blown"
    blown = AuditEntry.objects.all()[0]
    assert blown.via == "system"
    assert blown.subscription_id is None
    with audit.acting("alice", "command"):
        fuse.reset()
    fuse.reset()
    assert actions()[-2:] == ["fuse_blown", "fuse_reset"]
    assert AuditEntry.objects.all()[0].who == "alice (Command)"
    assert TripFuse.objects.get().blown_at is None


def test_deliveries_that_are_resent_discarded_and_replayed() -> None:
    first, second = make_subscription(), make_subscription()
    for number in range(3):
        publish("test.one", {"n": number})
    ids = list(Delivery.objects.order_by("id").values_list("pk", flat=True))
    discard(ids)
    discard(ids)
    assert actions(first) == actions(second) == ["created", "discarded"]
    assert last(first).detail["count"] == 3
    assert set(last(first).detail["deliveries"]) | set(last(second).detail["deliveries"]) == set(
        ids
    )
    replay(ids[:1])
    assert actions().count("resent") == 1
    Delivery.objects.update(status="failed", next_attempt_at=None, finished_at=timezone.now())
    list(replay_chosen(Chosen(first, ["failed", "discarded"])))
    assert last(first).action == "replayed"
    assert last(first).detail["count"] == 3
    assert last(first).detail["status"] == ["discarded", "failed"]
    assert last(first).story.startswith("3 deliveries; with the status discarded, failed")


def test_a_replay_of_many_batches_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deliveries.keeping.replay.BATCH", 2)
    subscription = make_subscription()
    for number in range(5):
        publish("test.one", {"n": number})
    Delivery.objects.update(status="failed", next_attempt_at=None, finished_at=timezone.now())
    list(replay_chosen(Chosen(subscription, ["failed"])))
    assert actions(subscription) == ["created", "replayed"]
    assert last(subscription).detail["count"] == 5


def test_keys_of_the_api() -> None:
    key, text = create_key("shop", ["events:write"], tenant="acme")
    with audit.acting("alice", "admin"):
        assert revoke(ApiKey.objects.all()) == 1
        assert revoke(ApiKey.objects.all()) == 0
    assert actions() == ["key_created", "key_revoked"]
    made = AuditEntry.objects.order_by("id")[0]
    assert made.subject == f"shop (whk_{key.prefix}…) (acme)"
    assert text not in str(made.detail)
    other, _ = create_key("other", ["events:write"], all_tenants=True)
    other.delete()
    assert actions()[2:] == ["key_created", "key_revoked"]


def test_the_api_acts_as_its_key(client: Client) -> None:
    subscription = make_subscription()
    _, text = create_key("settings page", ["subscriptions:write"], all_tenants=True)
    response = client.patch(
        f"/api/v1/subscriptions/{subscription.pk}",
        {"enabled": False},
        content_type="application/json",
        headers={"Authorization": f"Bearer {text}"},
    )
    assert response.status_code == 200
    assert (last(subscription).action, last(subscription).who) == ("paused", "settings page (API)")


def test_the_admin_acts_as_its_user(admin_user: User, client: Client) -> None:
    subscription = make_subscription()
    client.force_login(admin_user)
    client.post(
        "/admin/subscriptions/subscription/",
        {"action": "pause", "_selected_action": str(subscription.pk), "confirmed": "1"},
    )
    assert (last(subscription).action, last(subscription).who) == ("paused", "admin (Admin)")


def test_commands_act_as_the_user_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "root")
    monkeypatch.setenv("SUDO_USER", "alice")
    subscription = make_subscription()
    run("pause", subscription.name)
    assert last(subscription).who == "alice as root (Command)"


def test_a_trip_by_a_single_410_is_not_told_as_too_few_failures() -> None:
    detail = {"failures": 1, "threshold": 5, "status_code": 410, "error": "410 gone"}
    assert audit.story(detail) == "one 410 is enough; 410 gone"
    assert audit.story(detail | {"status_code": 500}).startswith("1 of 5 failures in a row")
