"""Beat's scheduler: the one of django-celery-beat, which outlives a clock that is set back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # it has no types
    _seen = datetime.min.replace(tzinfo=UTC)

    def all_as_schedule(self) -> Any:
        """What is read from the tables: when beat starts, and after each change there."""
        schedule = super().all_as_schedule()
        _forget_the_future(schedule, datetime.now(UTC))
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
