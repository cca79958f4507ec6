"""A worker, or beat, that cannot work ends at once and says why.

Celery runs Django's checks when it starts, and ignores what they find.
"""

from __future__ import annotations

from typing import Any

from celery.signals import beat_init, worker_init
from django.core.checks import ERROR, run_checks
from django.db import connections


@worker_init.connect
@beat_init.connect
def refuse_to_start(**_: Any) -> None:
    """End the process with 1 for an error of our own checks; an unreachable database is none."""
    try:
        # Not all checks: some need a database, and it may come later than the worker.
        found = run_checks(tags=["webhooks"], databases=["default"])
    finally:
        # A worker that forks must not share it with its children.
        connections.close_all()
    errors = [check for check in found if check.is_serious(ERROR) and not check.is_silenced()]
    if errors:
        raise SystemExit("This process does not start:\n" + "\n".join(map(str, errors)))
