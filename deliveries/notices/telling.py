"""Tells notices: as events, by the signal, and by e-mail."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

from django.core.mail import EmailMessage
from django.db import connection, transaction
from django.utils import timezone

from deliveries.monitoring.counts import counts
from deliveries.notices import wording
from deliveries.publishing.publish import publish_system
from subscriptions import signals
from subscriptions.conf import conf
from subscriptions.database import DATABASE_ERRORS
from subscriptions.models import AuditEntry, Subscription

logger = logging.getLogger(__name__)

# Seconds after which a notice is tried again that a channel did not take, or whose worker died:
# doubled with each attempt.
FIRST_DELAY = 60
MAX_DELAY = 3600
# Then it is given up; what was wrong stays in its entry.
GIVE_UP_AFTER = timedelta(days=3)

# Two who tell at the same time claim different ones. What is claimed is due again later, so that a
# worker that dies leaves it to another.
_CLAIM = """
UPDATE subscriptions_auditentry SET
    notify_at = now()
        + least(%(max)s, %(first)s * power(2.0, least(notice_attempts, 20))) * interval '1 second',
    notice_attempts = least(notice_attempts + 1, 30000)
WHERE id = ANY(ARRAY(
    SELECT id FROM subscriptions_auditentry WHERE notify_at <= now()
    ORDER BY notify_at, id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
))
RETURNING id
"""


def tell_due() -> int:
    """Tell what is due; returns how many notices were tried. May run many times at once."""
    tried = 0
    while entries := _claim_and_publish():
        tried += len(entries)
        for entry in entries:
            _tell([entry], "signal", _send_signal)
        if conf().notice_emails:
            _tell(entries, "mail", _send_mail)
        for entry in entries:
            _write_down(entry)
        counts.flush()
    return tried


def _claim_and_publish() -> list[AuditEntry]:
    """The events are published in the transaction of the claim: each once, by its id."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(_CLAIM, {"max": MAX_DELAY, "first": FIRST_DELAY, "batch": wording.BATCH})
            ids = [row[0] for row in cursor.fetchall()]
        entries = list(AuditEntry.objects.filter(pk__in=ids).order_by("pk"))
        for entry in entries:
            entry.notice_error = ""
            _tell([entry], "event", _publish)
        AuditEntry.objects.bulk_update(entries, ["told"])
    return entries


def _tell(
    entries: Sequence[AuditEntry], channel: str, tell: Callable[[Sequence[AuditEntry]], None]
) -> None:
    """Have a channel tell what it has not told; what it raises is for the next time."""
    entries = [entry for entry in entries if channel not in entry.told]
    if not entries:
        return
    try:
        tell(entries)
    except DATABASE_ERRORS:
        raise
    except Exception as error:
        logger.warning("%d notices could not be told by %s: %s", len(entries), channel, error)
        for entry in entries:
            entry.notice_error = f"{channel}: {signals.one_line(str(error)) or repr(error)}"
        return
    for entry in entries:
        entry.told.append(channel)
        counts.add({f"notice {wording.KINDS[entry.action]} {channel}": 1})


def _publish(entries: Sequence[AuditEntry]) -> None:
    """Publish the event of each, for all who listen but those that it must not reach.

    It never reaches the subscription that it is about. If that one listens to such events itself,
    it reaches none of the same tenant's either: two that listen, and fail, would tell of each
    other for ever. So events go from those that do not listen to those that do, and from a tenant's
    subscriptions to the application's that are for all tenants; no way leads back.
    """
    with transaction.atomic():
        for entry in entries:
            event = publish_system(
                wording.topic(wording.KINDS[entry.action]),
                wording.payload(entry),
                event_type="webhooks.notice",
                event_id=wording.event_id(entry),
                tenant=entry.tenant,
            )
            about = Subscription.objects.filter(pk__in=[entry.subscription_id])
            patterns = about.values_list("topic_patterns", flat=True).first()
            with connection.cursor() as cursor:
                # Nobody has seen them: they were made by this transaction.
                cursor.execute(
                    "DELETE FROM deliveries_delivery WHERE event_id = %s "
                    "AND (subscription_id = %s OR (%s AND tenant = %s))",
                    [
                        event.pk,
                        entry.subscription_id,
                        wording.listens(patterns or ()),
                        entry.tenant,
                    ],
                )


def _send_signal(entries: Sequence[AuditEntry]) -> None:
    for entry in entries:
        signals.notice.send_robust(sender=AuditEntry, entry=entry, kind=wording.KINDS[entry.action])


def _send_mail(entries: Sequence[AuditEntry]) -> None:
    """One e-mail for all that is told at the same moment."""
    to = conf().notice_emails
    EmailMessage(wording.subject(entries), wording.text(entries), to=to).send()


def _write_down(entry: AuditEntry) -> None:
    now = timezone.now()
    rows = AuditEntry.objects.filter(pk=entry.pk)
    if not entry.notice_error:
        rows.update(told=entry.told, notice_error="", notify_at=None, notified_at=now)
        return
    rows.update(told=entry.told, notice_error=entry.notice_error)
    if entry.at < now - GIVE_UP_AFTER:
        logger.error("A notice is given up (%s): %s", entry, entry.notice_error)
        rows.update(notify_at=None)
