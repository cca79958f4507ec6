"""The Celery application: `celery -A webhooks_project worker` and `… beat`."""

import gc
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from celery import Celery, signals

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")

# About pickled messages, which this project neither sends nor accepts.
warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")

app = Celery("webhooks_project")
app.config_from_object("deliveries.celeryconfig")
app.autodiscover_tasks()


@signals.after_setup_logger.connect  # in workers and beat, before they look for an engine
def _refuse_without_engines(**_: Any) -> None:
    from webhooks_project import engines

    if engines.embedded().engines and not engines.running():
        sys.exit(engines.NOT_RUNNING)


@signals.worker_ready.connect
def _tune_the_interpreter(**_: Any) -> None:
    """What is loaded by now stays: the garbage collector need not look at it again and again.

    And a thread that waits for the interpreter asks for it after 0.5 ms instead of 5: the stages
    of sending hand over to each other all the time.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


@signals.worker_ready.connect
@signals.beat_init.connect
def _tell_ready(**_: Any) -> None:
    """Touch the file that a supervisor waits for."""
    if path := os.environ.get("WEBHOOKS_READY_FILE"):
        Path(path).touch()
