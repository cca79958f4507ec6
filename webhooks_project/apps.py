import sys
from pathlib import Path

from django.apps import AppConfig
from django.conf import settings


class WebhooksProjectConfig(AppConfig):
    name = "webhooks_project"
    label = "webhooks_project"

    def ready(self) -> None:
        """A command is one thread. Without a pool it says at once that the database cannot be
        used, and why; the pool would try for ten seconds, and not say why."""
        if Path(sys.argv[0]).name == "manage.py":
            settings.DATABASES["default"]["OPTIONS"].pop("pool", None)
