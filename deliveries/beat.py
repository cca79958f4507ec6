"""Beat's scheduler: the one of django-celery-beat, which outlives a clock that is set back."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django_celery_beat.schedulers import DatabaseScheduler


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # it has no types
    _seen = datetime.min.replace(tzinfo=UTC)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        now = datetime.now(UTC)
        if now < self._seen:
            # By when it ran last, a task would not be due before the clock is there again; nor by
            # its place in the heap.
            for entry in self.schedule.values():
                entry.last_run_at = entry.model.last_run_at = min(entry.last_run_at, now)
            self._heap = None
        self._seen = now
        return super().tick(*args, **kwargs)
