"""Beat's scheduler: the one of django-celery-beat, which sweeps at once where there was no sweep
yet, and outlives a clock that is set back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler

from deliveries.waking.queues import SWEEP

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # it has no types
    _seen = datetime.min.replace(tzinfo=UTC)

    def setup_schedule(self) -> None:
        super().setup_schedule()
        # Read again: what it has just put into the tables has not been through `all_as_schedule`.
        self._schedule = self.all_as_schedule()

    def all_as_schedule(self) -> Any:
        """What is read from the tables: when beat starts, and after each change there."""
        schedule = super().all_as_schedule()
        _forget_the_future(schedule, datetime.now(UTC))
        for entry in schedule.values():
            if entry.task == SWEEP and not entry.total_run_count:
                # Nothing is due in a new database, but until there was a sweep `/readyz` says no.
                entry.last_run_at = entry.model.last_run_at = _LONG_AGO
        return schedule

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        now = datetime.now(UTC)
        if now < self._seen:
            _forget_the_future(self.schedule, now)
            self._heap = None  # each task's place in it is by the clock, too
        self._seen = now
        return super().tick(*args, **kwargs)


def _forget_the_future(schedule: Any, now: datetime) -> None:
    """A task that ran later than now would not be due before the clock is there again."""
    for entry in schedule.values():
        if entry.last_run_at and entry.last_run_at > now:
            entry.last_run_at = entry.model.last_run_at = now
