"""What every way of making and changing subscriptions does by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.management import call_command
from django.db.models import F, Value
from django.utils import timezone

from subscriptions import circuit
from subscriptions.models import SigningSecret, Subscription, create_subscription
from subscriptions.secrets import crypto, signing_secrets
from subscriptions.signals import circuit_reset
from tests.factories import make_subscription

pytestmark = pytest.mark.django_db(transaction=True)

FIELDS: dict[str, Any] = {"url": "https://example.com/hook", "topic_patterns": ["order.*"]}


def secrets(subscription: Subscription) -> list[str]:
    return [crypto.decrypt(one.ciphertext).decode() for one in subscription.secrets.live()]


def load(tmp_path: Path, *rows: Any) -> None:
    """`loaddata` of these rows, as `dumpdata` writes them."""
    fixture = tmp_path / "fixture.json"
    fixture.write_text(serializers.serialize("json", rows))
    call_command("loaddata", str(fixture), verbosity=0)


# A new subscription gets a signing secret.


WAYS: dict[str, Callable[[], Any]] = {
    "create": lambda: Subscription.objects.create(name="a", **FIELDS),
    "save": lambda: Subscription(name="a", **FIELDS).save(),
    "get_or_create": lambda: Subscription.objects.get_or_create(name="a", defaults=FIELDS),
    "update_or_create": lambda: Subscription.objects.update_or_create(name="a", defaults=FIELDS),
    "bulk_create": lambda: Subscription.objects.bulk_create([Subscription(name="a", **FIELDS)]),
    "create_subscription": lambda: create_subscription(name="a", **FIELDS),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_new_subscription_has_one_secret_whichever_way_it_is_made(way: str) -> None:
    for _ in range(1 if way in ("create", "save", "bulk_create", "create_subscription") else 2):
        WAYS[way]()
    [secret] = secrets(Subscription.objects.get(name="a"))
    assert signing_secrets.parse(secret) == secret


def test_the_secret_that_is_shown_is_the_one_that_is_stored() -> None:
    subscription, shown = create_subscription(name="a", **FIELDS)
    assert secrets(subscription) == [shown]
    given = signing_secrets.generate()
    subscription, shown = create_subscription(name="b", secret=given, **FIELDS)
    assert secrets(subscription) == [shown] == [given]


def test_saving_again_makes_no_second_secret() -> None:
    subscription = Subscription.objects.create(name="a", **FIELDS)
    subscription.name = "b"
    subscription.save()
    assert len(secrets(subscription)) == 1


def test_bulk_create_leaves_those_alone_that_were_there(configure: Callable[..., None]) -> None:
    there = Subscription.objects.create(name="a", **FIELDS)
    before = secrets(there)
    Subscription.objects.bulk_create(
        [there, *(Subscription(name=f"new {n}", **FIELDS) for n in range(3))],
        ignore_conflicts=True,
    )
    assert secrets(there) == before
    assert [len(secrets(one)) for one in Subscription.objects.all()] == [1] * 4


def test_a_fixture_without_secrets_gets_them(tmp_path: Path) -> None:
    now = timezone.now()
    load(tmp_path, Subscription(name="a", created_at=now, updated_at=now, **FIELDS))
    assert len(secrets(Subscription.objects.get())) == 1


def test_a_fixture_with_its_own_secrets_keeps_them_and_gets_no_others(tmp_path: Path) -> None:
    subscription = Subscription.objects.create(name="a", **FIELDS)
    secret = SigningSecret.objects.get()
    before = secrets(subscription)
    Subscription.objects.all().delete()
    load(tmp_path, subscription, secret)
    assert secrets(Subscription.objects.get()) == before


@pytest.mark.parametrize("way", WAYS)
def test_without_a_key_nothing_is_made(way: str, configure: Callable[..., None]) -> None:
    configure(secret_keys=())
    with pytest.raises(ImproperlyConfigured, match="WEBHOOKS_SECRET_KEYS is empty"):
        WAYS[way]()
    assert not Subscription.objects.exists()


# QuerySet.update goes through the circuit.


def trip(subscription: Subscription) -> None:
    circuit.record(
        [
            circuit.Report(
                subscription.pk, subscription.circuit_epoch, circuit.tally([False], gone=True),
                error="410", failed=True,
            )
        ]
    )  # fmt: skip
    subscription.refresh_from_db()


def test_update_enabled_resets_what_is_disabled() -> None:
    tripped, paused, active = (make_subscription() for _ in range(3))
    trip(tripped)
    circuit.pause([paused.pk])
    told: list[str] = []

    def hear(subscription: Subscription, **_: Any) -> None:
        told.append(subscription.name)

    circuit_reset.connect(hear)
    changed = Subscription.objects.filter(enabled=False).update(enabled=True, max_in_flight=3)
    assert changed == 2
    assert told == [tripped.name]
    for one in (tripped, paused, active):
        before = one.circuit_epoch
        one.refresh_from_db()
        assert (one.state, one.last_error) == ("active", "")
        assert one.max_in_flight == (10 if one == active else 3)
        assert (one.circuit_epoch > before) == (one != active)


def test_update_disabled_pauses_and_leaves_what_is_tripped() -> None:
    tripped, active = make_subscription(), make_subscription()
    trip(tripped)
    assert Subscription.objects.update(enabled=False) == 2
    tripped.refresh_from_db()
    active.refresh_from_db()
    assert (tripped.state, active.state) == ("tripped", "paused")


def test_update_of_the_url_begins_an_epoch() -> None:
    subscription = make_subscription()
    Subscription.objects.update(url="https://elsewhere.example.com/")
    circuit.record(
        [
            circuit.Report(
                subscription.pk, subscription.circuit_epoch, circuit.tally([False] * 9),
                error="late", failed=True,
            )
        ]
    )  # fmt: skip
    subscription.refresh_from_db()
    assert (subscription.state, subscription.consecutive_failures) == ("active", 0)
    assert subscription.url == "https://elsewhere.example.com/"


def test_update_of_the_recovery_plans_or_ends_the_probes() -> None:
    subscription = make_subscription(recovery="manual")
    trip(subscription)
    assert subscription.next_probe_at is None
    Subscription.objects.update(recovery="automatic")
    subscription.refresh_from_db()
    assert subscription.next_probe_at is not None
    Subscription.objects.update(recovery="manual")
    subscription.refresh_from_db()
    assert subscription.next_probe_at is None


def test_bulk_update_of_urls_begins_an_epoch() -> None:
    subscription = make_subscription()
    subscription.url = "https://elsewhere.example.com/"
    Subscription.objects.bulk_update([subscription], ["url"])
    before = subscription.circuit_epoch
    subscription.refresh_from_db()
    assert (subscription.url, subscription.circuit_epoch) == (
        "https://elsewhere.example.com/",
        before + 1,
    )


@pytest.mark.parametrize(
    "values",
    [
        {"auto_disabled_at": None},
        {"circuit_epoch": F("circuit_epoch") + 1},
        {"enabled": Value(True)},
        {"enabled": "on"},
    ],
)
def test_what_only_the_circuit_writes_cannot_be_updated(values: dict[str, Any]) -> None:
    subscription = make_subscription()
    trip(subscription)
    with pytest.raises(ValueError, match=r"update\(enabled="):
        Subscription.objects.update(**values)
    subscription.enabled = True
    with pytest.raises(ValueError, match=r"update\(enabled="):
        Subscription.objects.bulk_update([subscription], ["enabled"])
    subscription.refresh_from_db()
    assert subscription.state == "tripped"


# Tenants


def test_names_are_unique_within_a_tenant() -> None:
    create_subscription(name="a", **FIELDS)
    create_subscription(name="a", tenant="acme", **FIELDS)
    create_subscription(name="a", tenant="other", **FIELDS)
    for tenant in ("", "acme"):
        with pytest.raises(ValidationError) as refused:
            create_subscription(name="a", tenant=tenant, **FIELDS)
        assert [error.code for error in refused.value.error_dict["name"]] == ["unique"]


def test_a_name_is_unique_also_where_a_form_leaves_the_tenant_out() -> None:
    create_subscription(name="a", tenant="acme", **FIELDS)
    other, _ = create_subscription(name="b", tenant="acme", **FIELDS)
    other.name = "a"
    with pytest.raises(ValidationError, match="has a subscription with this name already"):
        other.full_clean(exclude=["tenant"])


@pytest.mark.parametrize("tenant", ["x" * 65, " a", "a ", "a\tb", "\0"])
def test_a_tenant_is_a_short_printable_text(tenant: str) -> None:
    with pytest.raises(ValidationError) as refused:
        create_subscription(name="a", tenant=tenant, **FIELDS)
    assert set(refused.value.error_dict) == {"tenant"}


def test_only_the_application_has_subscriptions_for_all_tenants() -> None:
    create_subscription(name="a", all_tenants=True, **FIELDS)
    with pytest.raises(ValidationError) as refused:
        create_subscription(name="b", tenant="acme", all_tenants=True, **FIELDS)
    assert set(refused.value.error_dict) == {"all_tenants"}


def past_the_row(subscription: Subscription, name: str) -> list[Callable[[], Any]]:
    """Ways to write a field of this instance without having read the row."""
    pretended = Subscription(
        pk=subscription.pk, name="x", **{name: getattr(subscription, name)}, **FIELDS
    )
    return [
        lambda: pretended.save(force_update=True),
        lambda: pretended.save(update_fields=[name]),
        lambda: Subscription.objects.bulk_create(
            [pretended], update_conflicts=True, unique_fields=["id"], update_fields=[name]
        ),
    ]


@pytest.mark.parametrize("before", [True, False])
def test_whether_a_subscription_is_for_all_tenants_never_changes(before: bool) -> None:
    subscription = make_subscription(all_tenants=before)
    subscription.all_tenants = not before
    with pytest.raises(ValidationError) as refused:
        subscription.full_clean()
    assert set(refused.value.error_dict) == {"all_tenants"}
    ways: list[Callable[[], Any]] = [
        subscription.save,
        lambda: subscription.save(update_fields=["all_tenants"]),
        lambda: Subscription.objects.update(all_tenants=not before),
        lambda: Subscription.objects.bulk_update([subscription], ["all_tenants"]),
        *past_the_row(subscription, "all_tenants"),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r"is decided when it is made|stays with its tenant"):
            way()
    subscription.save(update_fields=["name"])
    subscription.refresh_from_db()
    assert subscription.all_tenants is before


def test_a_subscription_stays_with_its_tenant() -> None:
    subscription = make_subscription(tenant="acme")
    subscription.tenant = "other"
    with pytest.raises(ValidationError) as refused:
        subscription.full_clean()
    assert set(refused.value.error_dict) == {"tenant"}
    ways: list[Callable[[], Any]] = [
        subscription.save,
        lambda: subscription.save(update_fields=["tenant"]),
        lambda: Subscription.objects.update(tenant="other"),
        lambda: Subscription.objects.bulk_update([subscription], ["tenant"]),
        *past_the_row(subscription, "tenant"),
    ]
    for way in ways:
        with pytest.raises(ValueError, match="stays with its tenant"):
            way()
    subscription.save(update_fields=["name"])
    subscription.refresh_from_db()
    assert subscription.tenant == "acme"


# Rotations.


def test_of_rotations_at_once_one_secret_is_left_without_an_end(
    at_once: Callable[..., list[str]],
) -> None:
    subscription = make_subscription()
    at_once(lambda _: Subscription.objects.get(pk=subscription.pk).rotate_secret(), 6)
    assert subscription.secrets.count() == 7
    assert subscription.secrets.filter(expires_at=None).count() == 1
