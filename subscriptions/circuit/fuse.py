"""The fuse: when too many cannot be reached, our own network is the likelier cause.

If our own network fails, every receiver fails with it, and every circuit would trip, one after
the other. So trips that may be our network's (no connection, a timeout, no address) add up over
some minutes, and when they are more than a share of the active subscriptions, the fuse blows:
no such failure trips a circuit any more, and an alert says to look at our own network.
Deliveries go on being retried, gently. A receiver that answers, if with an error, has been
reached: its failures neither blow the fuse nor are stopped by it.

What resets it: an HTTP answer of a receiver that could not be reached before; any success
once the window is over; an operator, by `manage.py reset_fuse`.
"""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial

from django.db import connection, transaction

from subscriptions import audit, signals
from subscriptions.circuit.rules import allowed_trips
from subscriptions.conf import conf

logger = logging.getLogger(__name__)


# Whether the window is over, and anybody has succeeded since.
_OUTLIVED = """
    blown_at < now() - %(window)s * interval '1 second' AND EXISTS (
        SELECT 1 FROM subscriptions_subscription s
        WHERE s.last_success_at > blown_at + %(window)s * interval '1 second'
    )
"""

# Locks the row: two workers that trip at the same moment count each other's.
_LOCK = f"""
INSERT INTO subscriptions_tripfuse (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 1
RETURNING blown_at, coalesce(reset_at, 'epoch'), {_OUTLIVED}
"""

# A trip in the transaction that has just reset the fuse counts, too.
_TRIPS = """
SELECT
    (SELECT count(*) FROM subscriptions_subscription
     WHERE auto_disabled_at >= greatest(%(reset_at)s, now() - %(window)s * interval '1 second')
        AND failing_by_network),
    (SELECT count(*) FROM subscriptions_subscription WHERE enabled)
"""


def holds(tripping: int) -> bool:
    """Whether `tripping` more circuits may trip now; if not, the fuse is, or has just, blown.

    Of circuits whose failures may be our own network's. Called in the transaction that trips,
    with the subscriptions locked.
    """
    values = conf()
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, {"window": values.fuse_window})
        blown_at, reset_at, outlived = cursor.fetchone()
        if outlived:
            reset(answered=True)
            cursor.execute(_LOCK, {"window": values.fuse_window})
            blown_at, reset_at, _ = cursor.fetchone()
        if blown_at is not None:
            return False
        cursor.execute(_TRIPS, {"reset_at": reset_at, "window": values.fuse_window})
        recent, active = cursor.fetchone()
        # Those that tripped within the window were active when it began.
        limit = allowed_trips(active + recent, values.fuse_trips, values.fuse_share)
        if recent + tripping <= limit:
            return True
        cursor.execute("UPDATE subscriptions_tripfuse SET blown_at = now() WHERE id = 1")
    detail = {
        "tripping": recent + tripping,
        "active": active + recent,
        "window_seconds": values.fuse_window,
    }
    audit.record("fuse_blown", [audit.Entry(detail=detail)], by_system=True, notify=True)
    signals.after_commit(
        partial(_announce_blown, recent + tripping, active + recent, values.fuse_window)
    )
    return False


def reset(at: datetime | None = None, *, answered: bool = False) -> None:
    """Let circuits trip again; the count of trips starts from 0. Does nothing if it is not blown.

    `answered`: an answer of a receiver says so, and no operator. `at`: when it came, if not now. A
    fuse that blew after stays blown.
    """
    with transaction.atomic(savepoint=False), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_tripfuse SET blown_at = NULL, reset_at = now() "
            "WHERE id = 1 AND blown_at <= coalesce(%s::timestamptz, clock_timestamp())",
            [at],
        )
        if cursor.rowcount:
            audit.record("fuse_reset", by_system=answered)
            signals.after_commit(_announce_reset)


def reset_outlived() -> None:
    """Reset a fuse whose window is over, if anybody has succeeded since.

    Beside `holds`, which is not asked while no circuit wants to trip.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT blown_at FROM subscriptions_tripfuse WHERE id = 1 AND {_OUTLIVED}",
            {"window": conf().fuse_window},
        )
        row = cursor.fetchone()
    if row is not None:
        reset(row[0], answered=True)


def blown() -> bool:
    """Whether the fuse is blown."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM subscriptions_tripfuse WHERE blown_at IS NOT NULL")
        return cursor.fetchone() is not None


def _announce_blown(tripping: int, active: int, window: float) -> None:
    logger.error(
        "%d of %d active subscriptions could not be reached and would have tripped within %.0f s: "
        "suspect our own network. No circuit trips for want of a connection until one of them "
        "answers, or, after that time, anybody does. If it is their fault: "
        "`manage.py reset_fuse`.",
        tripping,
        active,
        window,
    )
    signals.fuse_blown.send_robust(sender=None)


def _announce_reset() -> None:
    logger.warning("The fuse is reset: circuits may trip as before.")
    signals.fuse_reset.send_robust(sender=None)
