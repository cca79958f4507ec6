"""The fuse: when everyone seems to be down, we are.

If our own network fails, every receiver fails with it, and every circuit would trip, one after
the other. So trips add up over some minutes, and when they are more than a share of the active
subscriptions, the fuse blows: nothing trips any more, and an alert says to look at our own
network. Deliveries go on being retried, gently. It is mended by the first failing subscription
that succeeds again, by an operator's reset, and by itself once the window is over and somebody
answers: then it was not our network. A 410 is an answer, and trips in any case.
"""

from __future__ import annotations

import logging
from datetime import datetime
from functools import partial

from django.db import connection
from django.dispatch import Signal

from subscriptions import signals
from subscriptions.conf import conf

logger = logging.getLogger(__name__)


def allowed_trips(active: int, least: int, share: float) -> float:
    """How many of `active` subscriptions may trip within the window: max(least, share)."""
    return max(least, share * active)


# Locks the row: two workers that trip at the same moment count each other's.
_LOCK = """
INSERT INTO subscriptions_tripfuse (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET id = 1
RETURNING blown_at, coalesce(mended_at, 'epoch'),
    blown_at < now() - %(window)s * interval '1 second' AND EXISTS (
        SELECT 1 FROM subscriptions_subscription s
        WHERE s.last_success_at > blown_at + %(window)s * interval '1 second'
    )
"""

_TRIPS = """
SELECT
    (SELECT count(*) FROM subscriptions_subscription
     WHERE auto_disabled_at > greatest(%(mended_at)s, now() - %(window)s * interval '1 second')),
    (SELECT count(*) FROM subscriptions_subscription WHERE enabled)
"""


def holds(tripping: int) -> bool:
    """Whether `tripping` more circuits may trip now; if not, the fuse is, or has just, blown.

    Called in the transaction that trips, with the subscriptions locked.
    """
    values = conf()
    with connection.cursor() as cursor:
        cursor.execute(_LOCK, {"window": values.fuse_window})
        blown_at, mended_at, outlived = cursor.fetchone()
        if outlived:
            mend()
            cursor.execute(_LOCK, {"window": values.fuse_window})
            blown_at, mended_at, _ = cursor.fetchone()
        if blown_at is not None:
            return False
        cursor.execute(_TRIPS, {"mended_at": mended_at, "window": values.fuse_window})
        recent, active = cursor.fetchone()
        # Those that tripped within the window were active when it began.
        limit = allowed_trips(active + recent, values.fuse_trips, values.fuse_share)
        if recent + tripping <= limit:
            return True
        cursor.execute("UPDATE subscriptions_tripfuse SET blown_at = now() WHERE id = 1")
    logger.error(
        "%d of %d active subscriptions would have tripped within %.0f s: suspect our own "
        "network. No circuit trips until a failing receiver answers again.",
        recent + tripping,
        active + recent,
        values.fuse_window,
    )
    signals.after_commit(partial(_tell, signals.fuse_blown))
    return False


def mend(at: datetime | None = None) -> None:
    """Let circuits trip again; the count of trips begins anew. Nothing if the fuse is whole.

    `at`: when the success was that says so, if not now. A fuse that blew after stays blown.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_tripfuse SET blown_at = NULL, mended_at = now() "
            "WHERE id = 1 AND blown_at <= coalesce(%s::timestamptz, clock_timestamp())",
            [at],
        )
        mended = bool(cursor.rowcount)
    if mended:
        logger.warning("The fuse is mended: circuits may trip as before.")
        signals.after_commit(partial(_tell, signals.fuse_mended))


def blown() -> bool:
    """Whether the fuse is blown."""
    from subscriptions.models import TripFuse

    return TripFuse.objects.filter(pk=1, blown_at__isnull=False).exists()


def _tell(signal: Signal) -> None:
    signal.send_robust(sender=None)
