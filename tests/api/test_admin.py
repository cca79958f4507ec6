"""Keys in the admin: shown once, revoked, never changed."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.test import Client

from api import keys
from api.models import ApiKey

pytestmark = pytest.mark.django_db
LIST = "/admin/api/apikey/"
KEY = re.compile(r"whk_[a-z0-9]{8}_[A-Za-z0-9]{43}")


def test_a_key_is_on_the_page_that_made_it_and_on_no_other(admin_client: Client) -> None:
    response: Any = admin_client.post(
        f"{LIST}add/", {"name": "shop", "scopes": ["events:write"], "tenant": "acme"}
    )
    assert response.status_code == 200, response.content.decode()
    assert "no-store" in response["Cache-Control"]
    (text,) = set(KEY.findall(response.content.decode()))
    caller = keys.find(text)
    assert caller is not None
    assert caller.tenant == "acme"
    assert not list(get_messages(response.wsgi_request))
    row = ApiKey.objects.get()
    for page in (LIST, f"{LIST}{row.pk}/change/", f"{LIST}{row.pk}/history/"):
        shown = admin_client.get(page).content.decode()
        assert row.name in shown
        assert not KEY.search(shown)
        assert text.rpartition("_")[2] not in shown


@pytest.mark.parametrize(
    "wrong", [{"scopes": []}, {"tenant": "acme", "all_tenants": "on"}, {"scopes": ["all"]}]
)
def test_a_form_that_makes_no_sense_makes_no_key(
    admin_client: Client, wrong: dict[str, Any]
) -> None:
    fields = {"name": "shop", "scopes": ["events:write"], "tenant": "", **wrong}
    response = admin_client.post(f"{LIST}add/", fields)
    assert b"errorlist" in response.content
    assert not ApiKey.objects.exists()


def test_a_key_is_revoked_and_cannot_be_changed(admin_client: Client) -> None:
    row, text = keys.create_key("shop", ["events:write"])
    admin_client.post(
        f"{LIST}{row.pk}/change/", {"name": "other", "scopes": ["deliveries:read"], "tenant": "x"}
    )
    caller = keys.find(text)
    assert caller is not None
    assert (caller.name, caller.scopes, caller.tenant) == ("shop", {"events:write"}, "")
    admin_client.post(LIST, {"action": "revoke", "_selected_action": [row.pk]})
    assert keys.find(text) is None
    assert b"Revoked" in admin_client.get(f"{LIST}{row.pk}/history/").content
