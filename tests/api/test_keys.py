"""Keys: what they open, for whom, how long, and what of them is stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.utils import IntegrityError
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from api import keys
from api.models import ApiKey
from api.problems import Problem
from tests.api.calls import Caller, key

pytestmark = pytest.mark.django_db
THINGS = "/api/v1/things"


def test_a_key_is_found_and_its_row_does_not_hold_it() -> None:
    row, text = keys.create_key("shop", ["events:write"], tenant="acme")
    assert re.fullmatch(r"whk_[a-z0-9]{8}_[A-Za-z0-9]{43}", text)
    assert keys.find(text) == keys.Caller(row.pk, "shop", "acme", frozenset(["events:write"]))
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(api_apikey)::text FROM api_apikey")
        stored = cursor.fetchone()[0]
    assert text not in stored
    assert text.rpartition("_")[2] not in stored
    assert bytes(ApiKey.objects.get().digest) == sha256(text.encode()).digest()


def test_no_other_text_with_the_prefix_of_a_key_is_that_key() -> None:
    _, text = keys.create_key("shop", ["events:write"])
    last = "a" if text[-1] != "a" else "b"
    for wrong in (text[:-1] + last, text + "a", text[:-1], text.upper(), f" {text}", text + "\n"):
        assert keys.find(wrong) is None, wrong


def test_a_key_that_ends_is_refused_from_then_on() -> None:
    soon = timezone.now() + timedelta(seconds=60)
    row, text = keys.create_key("shop", ["events:write"], expires_at=soon)
    assert keys.find(text)
    ApiKey.objects.update(expires_at=timezone.now())
    assert keys.find(text) is None
    ApiKey.objects.update(expires_at=None)
    assert keys.find(text)
    assert keys.revoke(ApiKey.objects.filter(pk=row.pk)) == 1
    assert keys.revoke(ApiKey.objects.filter(pk=row.pk)) == 0
    assert keys.find(text) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": []},
        {"scopes": ["events:read"]},
        {"name": ""},
        {"name": "a\nb"},
        {"tenant": "a" * 65},
        {"tenant": "acme", "all_tenants": True},
    ],
)
def test_a_key_that_makes_no_sense_is_not_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        keys.create_key(**{"name": "shop", "scopes": ["events:write"], **wrong})
    assert not ApiKey.objects.exists()


def test_the_database_holds_no_key_of_one_tenant_and_of_all() -> None:
    keys.create_key("shop", ["events:write"], all_tenants=True)
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.update(tenant="acme")


def test_a_key_of_a_tenant_writes_for_no_other() -> None:
    bound = keys.Caller(1, "a", "acme", frozenset())
    assert bound.tenant_for(None) == bound.tenant_for("acme") == "acme"
    for other in ("", "other"):
        with pytest.raises(Problem) as caught:
            bound.tenant_for(other)
        assert (caught.value.status, caught.value.type) == (403, "other-tenant")
    everywhere = keys.Caller(2, "b", None, frozenset())
    assert everywhere.tenant_for(None) == ""
    assert everywhere.tenant_for("other") == "other"


@pytest.mark.urls("tests.api.routes")
def test_a_request_costs_one_query_to_know_its_caller_and_one_more_a_minute() -> None:
    caller = Caller("events:write")

    def queries() -> int:
        with CaptureQueriesContext(connection) as made:
            body = {"name": "a", "payload": {}}
            assert caller.call("POST", THINGS, body).status_code == 200
        return len(made)

    assert queries() == 2
    first = ApiKey.objects.get().last_used_at
    assert queries() == 1
    assert ApiKey.objects.get().last_used_at == first
    ApiKey.objects.update(last_used_at=timezone.now() - timedelta(seconds=61))
    assert queries() == 2


@pytest.mark.django_db(transaction=True)
def test_of_many_first_uses_at_once_one_is_written_and_nobody_waits(
    at_once: Callable[..., list[Any]],
) -> None:
    text = key("events:write")
    with transaction.atomic():
        # Somebody has the row in hand for as long as this lasts.
        ApiKey.objects.select_for_update().get()
        found = at_once(lambda number: keys.find(text), 8)
    assert all(found)
    assert ApiKey.objects.get().last_used_at is None
    at_once(lambda number: keys.find(text), 8)
    assert ApiKey.objects.get().last_used_at is not None
