"""Has a worker tell notices: right after the commit that wrote them, and by the sweep."""

from __future__ import annotations

import logging
from typing import Any

from celery import current_app
from django.dispatch import receiver

from deliveries.waking.queues import MAINTENANCE
from subscriptions import signals
from subscriptions.models import AuditEntry

logger = logging.getLogger(__name__)

TASK = "deliveries.tasks.tell"


@receiver(signals.notices_recorded)
def _on_notices(**_: Any) -> None:
    signals.after_commit(prompt)


def prompt() -> None:
    """Send the task. If the broker is away, nothing is lost: the sweep sends it again."""
    try:
        current_app.send_task(TASK, queue=MAINTENANCE, ignore_result=True)
    except Exception as error:
        logger.info("Notices are told by the next sweep: the broker is unreachable (%s).", error)


def prompt_if_due() -> None:
    """For the sweep: one look-up, by the index of what is not told yet."""
    if AuditEntry.objects.due().exists():
        prompt()
