"""The three groups: made by a migration, with what `deliveries.roles` gives each."""

from __future__ import annotations

import pytest
from django.apps import apps
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.db import connection

from deliveries.roles import ADMINISTRATOR, OPERATOR, ROLES, VIEWER, give, make_groups


def permissions_of(name: str) -> set[str]:
    found = Permission.objects.filter(group__name=name).select_related("content_type")
    return {f"{one.content_type.app_label}.{one.codename}" for one in found}


@pytest.mark.django_db
@pytest.mark.parametrize("name", ROLES)
def test_a_migrated_database_has_the_groups_with_their_permissions(name: str) -> None:
    assert permissions_of(name) == set(ROLES[name])


@pytest.mark.django_db
def test_a_second_run_changes_nothing_that_an_administrator_changed() -> None:
    operators = Group.objects.get(name=OPERATOR)
    operators.permissions.remove(Permission.objects.get(codename="discard_delivery"))
    make_groups(apps, "default")
    assert permissions_of(OPERATOR) == set(ROLES[OPERATOR]) - {"deliveries.discard_delivery"}


@pytest.mark.django_db
def test_a_new_permission_is_given_to_the_groups_that_it_belongs_to() -> None:
    Permission.objects.filter(codename="view_apikey").delete()
    assert "api.view_apikey" not in permissions_of(ADMINISTRATOR)
    give(apps, "default", "api.view_apikey")
    assert permissions_of(ADMINISTRATOR) == set(ROLES[ADMINISTRATOR])
    assert permissions_of(VIEWER) == set(ROLES[VIEWER])


@pytest.mark.django_db(transaction=True)
def test_a_flushed_database_has_the_groups_again() -> None:
    Group.objects.all().delete()
    call_command("flush", interactive=False, verbosity=0, database=connection.alias)
    assert {name: permissions_of(name) for name in ROLES} == {
        name: set(wanted) for name, wanted in ROLES.items()
    }
