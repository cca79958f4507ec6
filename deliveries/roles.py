"""Who may do what in the admin: three groups of users, made by a migration.

A group that is there is left as it is: what an administrator takes from it or gives to it stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.apps import apps as installed

VIEWER = "Webhooks viewer"
OPERATOR = "Webhooks operator"
ADMINISTRATOR = "Webhooks administrator"

_VIEWS = (
    "subscriptions.view_subscription",
    "subscriptions.view_auditentry",
    "deliveries.view_event",
    "deliveries.view_delivery",
    "deliveries.view_attempt",
)
_OPERATES = (
    "subscriptions.reset_subscription",
    "subscriptions.pause_subscription",
    "subscriptions.test_subscription",
    "subscriptions.replay_subscription",
    "deliveries.resend_delivery",
    "deliveries.discard_delivery",
)
_ADMINISTERS = (
    "subscriptions.add_subscription",
    "subscriptions.change_subscription",
    "subscriptions.delete_subscription",
    "subscriptions.rotate_subscription",
    "subscriptions.reset_fuse",
    "api.view_apikey",
    "api.add_apikey",
    "api.change_apikey",
    "api.delete_apikey",
)

# Each group's permissions, as `app.codename`. The app `api` may not be installed.
ROLES = {
    VIEWER: _VIEWS,
    OPERATOR: _VIEWS + _OPERATES,
    ADMINISTRATOR: _VIEWS + _OPERATES + _ADMINISTERS,
}


def make_groups(apps: Any, using: str) -> None:
    """Make those of the three groups that are missing, with those permissions that there are.

    `apps`: as a migration or `post_migrate` has them. The permissions are made first: Django
    makes them after all migrations. Nothing is done in a project without `django.contrib.auth`.
    """
    if not installed.is_installed("django.contrib.auth"):
        return
    for app in sorted({permission.split(".")[0] for permission in ROLES[ADMINISTRATOR]}):
        _make_permissions(apps, using, app)
    groups = apps.get_model("auth", "Group").objects.using(using)
    known = set(groups.filter(name__in=ROLES).values_list("name", flat=True))
    for name in [name for name in ROLES if name not in known]:
        _give(apps, using, groups.create(name=name), ROLES[name])


def give(apps: Any, using: str, *permissions: str) -> None:
    """Give to the groups that are there these permissions, which are new, as `ROLES` has it.

    For the migration after the one that brings what they are about.
    """
    if not installed.is_installed("django.contrib.auth"):
        return
    for app in {permission.split(".")[0] for permission in permissions}:
        _make_permissions(apps, using, app)
    for group in apps.get_model("auth", "Group").objects.using(using).filter(name__in=ROLES):
        _give(apps, using, group, set(permissions) & set(ROLES[group.name]))


def _make_permissions(apps: Any, using: str, app: str) -> None:
    # Importing it needs an installed `auth`.
    from django.contrib.auth.management import create_permissions

    try:
        config = apps.get_app_config(app)
    except LookupError:
        return
    # A migration's app has no module of models, and would be taken for one without models.
    config.models_module = getattr(config, "models_module", True)
    create_permissions(config, verbosity=0, using=using, apps=apps)


def _give(apps: Any, using: str, group: Any, permissions: Iterable[str]) -> None:
    known = apps.get_model("auth", "Permission").objects.using(using)
    for permission in permissions:
        app, codename = permission.split(".")
        group.permissions.add(*known.filter(content_type__app_label=app, codename=codename))
