"""What the tables say when they are asked: states, depth of the queue, what is oldest.

Each statement reads a bounded part of an index, whatever the tables hold. Finished deliveries,
which are nearly all, are never read.
"""

from __future__ import annotations

from dataclasses import dataclass

from django.db import connection, transaction

from subscriptions.database import Statement, WorkerCursor, worker_cursor

# How many pending, and how many held, deliveries are counted; beyond that it is an estimate. So
# many of each take 25 ms, and 140 ms where nothing was vacuumed yet.
COUNTED = 100_000
# Of so many subscriptions that have something pending the oldest due delivery is looked up.
LOOKED_AT = 20_000
# The longest that one of these statements may take.
_TIMEOUT = Statement("SELECT set_config('statement_timeout', '5s', true)")

_STATES = """
SELECT count(*) FILTER (WHERE enabled),
    count(*) FILTER (WHERE NOT enabled AND auto_disabled_at IS NULL),
    count(*) FILTER (WHERE auto_disabled_at IS NOT NULL),
    count(*) FILTER (WHERE enabled AND consecutive_failures > 0)
FROM subscriptions_subscription
"""

# By `delivery_due` and `delivery_held`, without the rows themselves where these are old enough.
# The estimate is what PostgreSQL noted of the index when it last looked at the table.
_PENDING = Statement("""
SELECT count(*), count(*) FILTER (WHERE next_attempt_at <= now()),
    (SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('delivery_due'))
FROM (
    SELECT next_attempt_at FROM deliveries_delivery WHERE status = 'pending'
    ORDER BY subscription_id, next_attempt_at LIMIT %(limit)s::bigint
) counted
""")
_HELD = Statement("""
SELECT count(*), NULL::bigint,
    (SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('delivery_held'))
FROM (
    SELECT id FROM deliveries_delivery WHERE status = 'held'
    ORDER BY subscription_id, id LIMIT %(limit)s::bigint
) counted
""")

# As the sweep looks: one look-up a subscription in `delivery_due`, however many rows it has. Left
# out are lanes that somebody sends for, and those that back off: these wait on purpose.
_OLDEST = Statement("""
WITH RECURSIVE first AS (
    (
        SELECT subscription_id, next_attempt_at FROM deliveries_delivery
        WHERE status = 'pending' ORDER BY subscription_id, next_attempt_at LIMIT 1
    )
    UNION ALL
    SELECT following.* FROM first CROSS JOIN LATERAL (
        SELECT subscription_id, next_attempt_at FROM deliveries_delivery
        WHERE status = 'pending' AND subscription_id > first.subscription_id
        ORDER BY subscription_id, next_attempt_at LIMIT 1
    ) following
)
SELECT coalesce(
    max(date_part('epoch', now() - greatest(first.next_attempt_at, lane.resume_at))), 0
)
FROM (SELECT * FROM first LIMIT %(limit)s::bigint) first
JOIN subscriptions_subscription s ON s.id = first.subscription_id
LEFT JOIN deliveries_lane lane ON lane.subscription_id = first.subscription_id
WHERE s.enabled AND first.next_attempt_at <= now()
    AND (lane.lease_until IS NULL OR lane.lease_until < now())
    AND (lane.resume_at IS NULL OR lane.resume_at <= now())
""")

# The notices by the index `audit_untold`.
_FUSE_AND_NOTICES = """
SELECT EXISTS (SELECT 1 FROM subscriptions_tripfuse WHERE blown_at IS NOT NULL), (
    SELECT count(*) FROM subscriptions_auditentry
    WHERE notify_at IS NOT NULL AND notice_attempts > 0
)
"""


# The transactions that keep PostgreSQL from removing old versions of our rows. Those of another
# user are seen with the role `pg_read_all_stats`.
_OLDEST_TRANSACTION = """
SELECT coalesce(max(date_part('epoch', clock_timestamp() - xact_start)), 0)
FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend'
    AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Tables:
    """`subscriptions`: how many, by state; `failing` are among the active ones.

    `due`, `later` (a retry whose time has not come) and `held`: numbers of deliveries, exact up to
    `COUNTED`. `oldest_due`: seconds since when the oldest delivery is due that nobody is sending
    and that does not wait on purpose; 0 if there is none. `notices_waiting`: those that were tried
    and are not told yet. `oldest_transaction`: for how many seconds another transaction on this
    database has been open that has written, or has a snapshot.
    """

    subscriptions: dict[str, int]
    failing: int
    due: int
    later: int
    held: int
    oldest_due: float
    fuse_blown: bool
    notices_waiting: int = 0
    oldest_transaction: float = 0.0


def read_tables() -> Tables:
    with transaction.atomic():
        with connection.cursor() as cursor:
            # Read from end to end: 1,000 subscriptions take a millisecond.
            cursor.execute(_STATES)
            active, paused, tripped, failing = cursor.fetchone()
            cursor.execute(_FUSE_AND_NOTICES)
            fuse_blown, waiting = cursor.fetchone()
            cursor.execute(_OLDEST_TRANSACTION)
            (oldest_transaction,) = cursor.fetchone()
        with worker_cursor() as worker:
            worker.execute(_TIMEOUT, {})
            pending, due = _count(worker, _PENDING)
            held, _ = _count(worker, _HELD)
            worker.execute(_OLDEST, {"limit": LOOKED_AT})
            (oldest_due,) = worker.fetchone()
    return Tables(
        {"active": active, "paused": paused, "tripped": tripped},
        failing,
        due=due,
        later=pending - due,
        held=held,
        oldest_due=oldest_due,
        fuse_blown=fuse_blown,
        notices_waiting=waiting,
        oldest_transaction=oldest_transaction,
    )


def _count(cursor: WorkerCursor, statement: Statement) -> tuple[int, int]:
    """How many rows, and how many of them are due: in proportion, if it is an estimate."""
    cursor.execute(statement, {"limit": COUNTED})
    counted, due, estimate = cursor.fetchone()
    if counted < COUNTED:
        return counted, due or 0
    total = max(counted, estimate)
    return total, (due or 0) * total // counted
