"""The backend that `DATABASES["default"]["ENGINE"]` names when the database is embedded."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db.backends.postgresql import base

from webhooks_project import engines


class DatabaseWrapper(base.DatabaseWrapper):
    """Starts the embedded engines when a connection, or a pool of them, is about to be made."""

    def get_connection_params(self) -> dict[str, Any]:
        try:
            engines.ensure()
        except engines.EngineError as error:
            raise ImproperlyConfigured(str(error)) from error
        return dict(super().get_connection_params())
