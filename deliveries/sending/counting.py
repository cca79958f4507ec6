"""What a worker process counted is shared: in Redis each second, in the roll-ups every five."""

from __future__ import annotations

import threading

from django.db import connection

from deliveries.monitoring.counts import counts
from deliveries.monitoring.rollups import rollups
from deliveries.stage import Stage, every
from deliveries.waking.wakeups import OUTAGE_SECONDS


class Counting:
    """Two threads, which are idle while nothing is counted. Both try again after an outage."""

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._sharing: Stage[bool] = Stage("count", self._share, pace=every(1.0))
        self._rolling_up: Stage[bool] = Stage("roll up", self._roll_up, pace=every(5.0))

    def share(self) -> None:
        """Something was counted. Never waits."""
        self._sharing.put(True)

    def close(self) -> None:
        """Share what was counted before, if that can be. Not to be used after."""
        self._sharing.close()
        self._rolling_up.close()

    def _share(self, _: list[bool]) -> None:
        if not counts.flush() and not self._stopping.is_set():
            self._sharing.put_later(True, OUTAGE_SECONDS)
        self._rolling_up.put(True)

    def _roll_up(self, _: list[bool]) -> None:
        try:
            if not rollups.flush() and not self._stopping.is_set():
                self._rolling_up.put_later(True, OUTAGE_SECONDS)
        finally:
            connection.close()
