"""When beat's tasks are due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import current_app
from django_celery_beat.models import PeriodicTask

from deliveries.beat import Scheduler
from deliveries.waking.queues import SWEEP
from subscriptions.conf import conf

# Reading the tables closes old connections.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def scheduler() -> Scheduler:
    """As when beat starts for the first time."""
    scheduler = Scheduler(app=current_app, lazy=True)
    scheduler.setup_schedule()
    return scheduler


def due(schedule: Any) -> set[str]:
    return {entry.task for entry in schedule.values() if entry.is_due().is_due}


def test_only_the_sweep_is_due_when_beat_starts_for_the_first_time(scheduler: Scheduler) -> None:
    """So a new installation is ready at once; all other tasks wait for their time."""
    assert due(scheduler.schedule) == {SWEEP}


def test_the_interval_of_the_setting_is_that_of_the_tables(scheduler: Scheduler) -> None:
    """They keep whole seconds: of a fraction beat would make nothing, and sweep all the time."""
    interval = PeriodicTask.objects.get(task=SWEEP).interval
    assert (interval.every, interval.period) == (conf().sweep_interval, "seconds")


def test_later_a_sweep_waits_for_its_time_even_if_the_tables_are_read_again(
    scheduler: Scheduler,
) -> None:
    now = datetime.now(UTC)
    PeriodicTask.objects.filter(task=SWEEP).update(last_run_at=now, total_run_count=1)
    assert due(scheduler.all_as_schedule()) == set()


def test_a_clock_that_was_set_back_is_not_waited_for(scheduler: Scheduler) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)
    PeriodicTask.objects.update(last_run_at=ahead, total_run_count=1)
    entries = scheduler.all_as_schedule().values()
    assert all(entry.last_run_at < ahead for entry in entries)
