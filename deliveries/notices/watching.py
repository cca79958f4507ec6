"""What is told because time has passed: a circuit is still tripped. Looked for by housekeeping."""

from __future__ import annotations

from django.db import connection, transaction

from subscriptions import audit

STILL_AFTER_HOURS = 24
# Of one run; the next goes on.
BATCH = 1000

# Locked, so that none is reset meanwhile; what another transaction has locked is for the next run.
_STILL_TRIPPED = """
SELECT s.id, s.auto_disabled_at, s.last_error, s.failing_since
FROM subscriptions_subscription s
WHERE s.auto_disabled_at < now() - %(hours)s * interval '1 hour' AND NOT EXISTS (
    SELECT 1 FROM subscriptions_auditentry a
    WHERE a.subscription_id = s.id AND a.action = 'still_tripped' AND a.at > s.auto_disabled_at
)
ORDER BY s.id LIMIT %(batch)s FOR NO KEY UPDATE SKIP LOCKED
"""


def watch() -> int:
    """Record a notice for each trip that has lasted a day, once; returns how many."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_STILL_TRIPPED, {"hours": STILL_AFTER_HOURS, "batch": BATCH})
        entries = [
            audit.Entry(
                key,
                {
                    "error": error,
                    "tripped_at": tripped_at.isoformat(),
                    "first_failure_at": since and since.isoformat(),
                },
                f"{key}:still_tripped:{tripped_at.isoformat()}",
            )
            for key, tripped_at, error, since in cursor.fetchall()
        ]
        return len(audit.record("still_tripped", entries, by_system=True, notify=True))
