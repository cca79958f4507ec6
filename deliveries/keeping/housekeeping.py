"""Housekeeping: what is held for too long ends, and what is kept long enough goes.

Each run goes through what is old once, a page at a time, whether it is removed or kept: where a
page ends, the next begins. Each page is a transaction of its own, with SKIP LOCKED for the rows
that it changes: it never blocks a delivery, may run twice at once, and may be killed anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from deliveries.holding import HELD_TOO_LONG
from subscriptions import audit
from subscriptions.conf import conf

# How many rows a page has.
BATCH = 2000
# How many days the roll-ups of minutes are kept; those of hours are by a setting.
KEEP_MINUTES_DAYS = 8

# Where PostgreSQL believes a table empty, as it was when it looked last, it may read all of it for
# each page. A table that is locked against this is being analyzed or vacuumed already.
_ANALYZE = "ANALYZE (SKIP_LOCKED) {}"

# Of each statement: `page` is read by an index, from where the last page ended; `old` are the
# rows of it that are changed; the answer is how many were, and where the page ended, or no row if
# it was empty. (`ANY(ARRAY(…))` and not `IN (…)`: the planner may join a sub-select by reading
# the whole table.)

# By the index `delivery_held`.
_EXPIRE_HELD = """
WITH page AS MATERIALIZED (
    SELECT subscription_id, id, held_at FROM deliveries_delivery
    WHERE status = 'held' AND (subscription_id, id) > (%(after)s::uuid, %(after_id)s::bigint)
    ORDER BY subscription_id, id LIMIT %(batch)s
), old AS MATERIALIZED (
    SELECT id FROM deliveries_delivery
    WHERE status = 'held' AND held_at < now() - %(days)s * interval '1 day' AND id = ANY(ARRAY(
        SELECT id FROM page WHERE held_at < now() - %(days)s * interval '1 day'
    ))
    FOR UPDATE SKIP LOCKED
), expired AS (
    UPDATE deliveries_delivery SET status = 'discarded', finished_at = now(),
        last_error = %(reason)s
    WHERE id = ANY(ARRAY(SELECT id FROM old))
)
SELECT (SELECT count(*) FROM old), subscription_id, id, (
    SELECT json_agg(soon) FROM (
        SELECT subscription_id, count(*) AS count, min(held_at) AS held_at FROM page
        WHERE held_at >= now() - %(days)s * interval '1 day'
            AND held_at < now() - (%(days)s - %(warn_days)s) * interval '1 day'
        GROUP BY subscription_id
    ) AS soon
)
FROM page ORDER BY subscription_id DESC, id DESC LIMIT 1
"""

_PAST_ITS_TIME = """finished_at < now() - interval '1 day' * CASE status
            WHEN 'succeeded' THEN %(succeeded_days)s::float8 ELSE %(failed_days)s::float8 END"""

# By the index `delivery_finished`.
_PRUNE_DELIVERIES = f"""
WITH page AS MATERIALIZED (
    SELECT finished_at, id, {_PAST_ITS_TIME} AS is_old FROM deliveries_delivery
    WHERE finished_at >= %(after)s::timestamptz
        AND (finished_at, id) > (%(after)s::timestamptz, %(after_id)s::bigint)
        AND finished_at < now()
            - least(%(succeeded_days)s::float8, %(failed_days)s::float8) * interval '1 day'
    ORDER BY finished_at, id LIMIT %(batch)s
), old AS MATERIALIZED (
    SELECT id FROM deliveries_delivery
    WHERE {_PAST_ITS_TIME} AND id = ANY(ARRAY(SELECT id FROM page WHERE is_old))
    FOR UPDATE SKIP LOCKED
), attempts AS (
    DELETE FROM deliveries_attempt WHERE delivery_id = ANY(ARRAY(SELECT id FROM old))
), deliveries AS (
    DELETE FROM deliveries_delivery WHERE id = ANY(ARRAY(SELECT id FROM old))
)
SELECT (SELECT count(*) FROM old), finished_at, id
FROM page ORDER BY finished_at DESC, id DESC LIMIT 1
"""

# By the index `event_created`. Events of which a delivery is kept are many, and read once.
_PRUNE_EVENTS = """
WITH page AS MATERIALIZED (
    SELECT created_at, id FROM deliveries_event
    WHERE created_at >= %(after)s::timestamptz
        AND (created_at, id) > (%(after)s::timestamptz, %(after_id)s::text)
        AND created_at < now() - %(days)s * interval '1 day'
    ORDER BY created_at, id LIMIT %(batch)s
), old AS MATERIALIZED (
    SELECT id FROM deliveries_event
    WHERE id = ANY(ARRAY(
        SELECT id FROM page WHERE (
            SELECT true FROM deliveries_delivery d WHERE d.event_id = page.id LIMIT 1
        ) IS NULL
    ))
    FOR UPDATE SKIP LOCKED
), events AS (
    DELETE FROM deliveries_event WHERE id = ANY(ARRAY(SELECT id FROM old))
)
SELECT (SELECT count(*) FROM old), created_at, id
FROM page ORDER BY created_at DESC, id DESC LIMIT 1
"""

_PRUNE_LANES = """
DELETE FROM deliveries_lane WHERE subscription_id = ANY(ARRAY(
    SELECT lane.subscription_id FROM deliveries_lane lane
    WHERE NOT EXISTS (
        SELECT 1 FROM subscriptions_subscription s WHERE s.id = lane.subscription_id
    )
    FOR UPDATE SKIP LOCKED
))
"""

# By the primary keys. Each run removes what a run's time made old, after an outage more.
_PRUNE_ROLLUPS = (
    """
DELETE FROM deliveries_minuterollup WHERE minute < now() - %(minutes)s * interval '1 day'
""",
    """
DELETE FROM deliveries_rollupwriter WHERE written_at < now() - interval '1 day'
""",
)
_PRUNE_HOURS = """
WITH old AS (
    DELETE FROM deliveries_hourrollup WHERE (hour, subscription_id) IN (
        SELECT hour, subscription_id FROM deliveries_hourrollup
        WHERE hour < now() - %(days)s * interval '1 day'
        ORDER BY hour, subscription_id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
    )
    RETURNING 1
)
SELECT count(*) FROM old
"""


def expire_held() -> int:
    """Discard deliveries held for longer than `hold_days`; returns how many.

    A subscription of which some expire within a day (or half of `hold_days`) has a notice, once
    for each time that it is stopped.
    """
    _analyze("deliveries_delivery")
    soon: dict[UUID, tuple[int, datetime]] = {}
    days = conf().hold_days

    def add_up(found: list[dict[str, Any]] | None) -> None:
        for row in found or ():
            key, held_at = UUID(row["subscription_id"]), datetime.fromisoformat(row["held_at"])
            count, first = soon.get(key, (0, held_at))
            soon[key] = count + row["count"], min(first, held_at)

    expired = _page_by_page(
        _EXPIRE_HELD,
        {"after": "00000000-0000-0000-0000-000000000000", "after_id": 0},
        add_up,
        reason=HELD_TOO_LONG,
        days=days,
        warn_days=min(1.0, days / 2),
    )
    if soon:
        _warn(soon, timedelta(days=days))
    return expired


def _warn(soon: Mapping[UUID, tuple[int, datetime]], kept: timedelta) -> None:
    with connection.cursor() as cursor:
        # Those that are stopped: what is held of an active one is about to be released.
        cursor.execute(
            "SELECT id, circuit_epoch FROM subscriptions_subscription "
            "WHERE id = ANY(%s::uuid[]) AND NOT enabled",
            [list(soon)],
        )
        stopped = cursor.fetchall()
    audit.record(
        "held_expiring",
        [
            audit.Entry(
                key,
                {"count": soon[key][0], "first_expires_at": (soon[key][1] + kept).isoformat()},
                f"{key}:held_expiring:{epoch}",
            )
            for key, epoch in stopped
        ],
        by_system=True,
        notify=True,
    )


def prune() -> tuple[int, int]:
    """Remove finished deliveries past their time, and events that have none left.

    Returns the numbers of deliveries and of events removed.
    """
    values = conf()
    _analyze("deliveries_delivery, deliveries_event")
    deliveries = _page_by_page(
        _PRUNE_DELIVERIES,
        {"after": "-infinity", "after_id": 0},
        succeeded_days=values.keep_succeeded_days,
        failed_days=values.keep_failed_days,
    )
    events = _page_by_page(
        _PRUNE_EVENTS,
        {"after": "-infinity", "after_id": ""},
        days=min(values.keep_succeeded_days, values.keep_failed_days),
    )
    with connection.cursor() as cursor:
        cursor.execute(_PRUNE_LANES)
    while _prune_audit() == BATCH:
        pass
    prune_rollups()
    return deliveries, events


def prune_rollups() -> None:
    """Remove roll-ups past their time: of minutes after 8 days, of hours by the setting."""
    with connection.cursor() as cursor:
        for statement in _PRUNE_ROLLUPS:
            cursor.execute(statement, {"minutes": KEEP_MINUTES_DAYS})
        while True:
            cursor.execute(_PRUNE_HOURS, {"days": conf().keep_statistics_days, "batch": BATCH})
            if cursor.fetchone()[0] < BATCH:
                return


def _prune_audit() -> int:
    """Remove some entries of the audit past their time, by the index `audit_listed`."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            DELETE FROM subscriptions_auditentry WHERE id = ANY(ARRAY(
                SELECT id FROM subscriptions_auditentry
                WHERE at < now() - %s * interval '1 day'
                ORDER BY at, id LIMIT %s FOR UPDATE SKIP LOCKED
            ))
            """,
            [conf().keep_audit_days, BATCH],
        )
        return int(cursor.rowcount)


def _analyze(tables: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_ANALYZE.format(tables))


def _page_by_page(
    sql: str,
    start: Mapping[str, Any],
    look_at: Callable[[Any], None] | None = None,
    **parameters: Any,
) -> int:
    """Run `sql` on each page after `start`; returns how many rows were changed.

    `look_at` gets what a page says besides.
    """
    total = 0
    position = start
    while True:
        with connection.cursor() as cursor:
            cursor.execute(sql, {**parameters, **position, "batch": BATCH})
            page = cursor.fetchone()
        if page is None:
            return total
        count, after, after_id, *more = page
        if look_at is not None:
            look_at(*more)
        total += count
        position = {"after": after, "after_id": after_id}
