from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.apps import AppConfig
from django.apps import apps as installed
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_migrate

_found = find_spec("subscriptions")
if _found is None or Path(str(_found.origin)).parent.parent != Path(__file__).parent.parent:
    raise ImproperlyConfigured(
        "The package `subscriptions` that Python finds is not the one that belongs to "
        f"`deliveries`: {_found and _found.origin}. If an application of the project has that "
        "name, rename it, or run the webhook sender as a project of its own."
    )


class DeliveriesConfig(AppConfig):
    name = "deliveries"
    # As the migrations have it, whatever the project's own default is.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from deliveries import checks, holding, starting  # noqa: F401
        from deliveries.monitoring import counts  # noqa: F401
        from deliveries.notices import prompting  # noqa: F401

        # A database that was flushed has lost what the migrations wrote.
        post_migrate.connect(_make_groups, sender=self)


def _make_groups(using: str, apps: Any = installed, **_: Any) -> None:
    from deliveries.roles import make_groups

    make_groups(apps, using)
