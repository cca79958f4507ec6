from importlib.util import find_spec
from pathlib import Path

from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured

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
