"""Runs a worker that counts, rolls up and logs no attempt: what that costs is the rest.

    python unobserved.py -m MODULE, and its arguments

Used by the scenario *observed*.
"""

from __future__ import annotations

import sys
from typing import Any

from celery import signals
from marking import run_program


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def look_away(**_: Any) -> None:
    from deliveries.monitoring.counts import Counts
    from deliveries.sending import sender
    from deliveries.sending.counting import Counting

    def nothing(*_: Any, **__: Any) -> None: ...

    for owner, name in (
        (Counts, "add_results"),
        (Counting, "share"),
        (sender, "log_attempts"),
    ):
        if not hasattr(owner, name):
            raise AttributeError(f"{owner} has no {name} any more: say here what observes now")
        setattr(owner, name, nothing)


if __name__ == "__main__":
    run_program(sys.argv[1:])
