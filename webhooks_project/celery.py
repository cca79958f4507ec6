"""The Celery application: `celery -A webhooks_project worker` and `… beat`."""

import os
import warnings
from pathlib import Path
from typing import Any

from celery import Celery, signals

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")

# About pickled messages, which this project neither sends nor accepts.
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

app = Celery("webhooks_project")
app.config_from_object("webhooks_project.celeryconfig")
app.autodiscover_tasks()


@signals.worker_init.connect
@signals.beat_init.connect
def _start_engines(**_: Any) -> None:
    from webhooks_project import engines

    engines.ensure()


@signals.worker_ready.connect
@signals.beat_init.connect
def _tell_ready(**_: Any) -> None:
    """Touch the file that a supervisor waits for."""
    if path := os.environ.get("WEBHOOKS_READY_FILE"):
        Path(path).touch()
