"""A control room of any size, made by SQL: subscriptions in every state, and a month of history.

For a database that has our tables with nothing in them. Every twenty subscriptions have their
topics; a third of these groups are tenants. Some 95 % of the deliveries have succeeded, the others
have failed, are discarded, held or due, as the states of their subscriptions have it. For one of
those that are tripped, a tenth of all is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg

from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS

FAN_OUT = 20
HELD = 2
OF_EVENT = FAN_OUT + HELD
DAYS = 28
TABLES = ("deliveries_event", "deliveries_delivery", "deliveries_attempt")
# Events in one statement.
_STEP = 10_000


class Size(NamedTuple):
    """`subscriptions`: a multiple of 20. Each event has 20 deliveries, and two that are held."""

    subscriptions: int
    events: int
    audit: int

    @property
    def deliveries(self) -> int:
        return self.events * OF_EVENT


# Of each hundred, three are tripped, two are paused, five fail, and two never had a success.
_SUBSCRIPTIONS = """
INSERT INTO subscriptions_subscription (
    id, tenant, all_tenants, name, url, topic_patterns, headers, max_in_flight, recovery, enabled,
    auto_disabled_at, consecutive_failures, failing_since, last_success_at, last_failure_at,
    last_error, failing_by_network, circuit_epoch, probe_count, next_probe_at, created_at,
    updated_at
)
SELECT gen_random_uuid(),
    CASE WHEN n / %(fan_out)s %% 3 = 0 THEN 'tenant-' || n / %(fan_out)s ELSE '' END, false,
    'receiver ' || n,
    'https://' || 'receiver-' || n || '.example.com/hooks/' || n,
    jsonb_build_array(
        'shop-' || n / %(fan_out)s || '.>', 'order.*', 'invoice.paid', 'customer.>'
    ), '{}', 10, 'automatic', n %% 100 >= 5,
    CASE WHEN n %% 100 < 3 THEN now() - n * interval '1 minute' END,
    CASE WHEN n %% 100 < 3 THEN 5 WHEN n %% 100 BETWEEN 5 AND 9 THEN n %% 4 + 1 ELSE 0 END,
    CASE WHEN n %% 100 < 10 THEN now() - n * interval '2 minutes' END,
    CASE WHEN n %% 100 < 98 THEN now() - n * interval '3 seconds' END,
    now() - n * interval '1 minute',
    CASE WHEN n %% 100 < 10 THEN '503 Service Unavailable: upstream connect error' ELSE '' END,
    false, 1, 0, CASE WHEN n %% 100 < 3 THEN now() + interval '5 minutes' END,
    now() - %(days)s * interval '1 day', now()
FROM generate_series(0, %(subscriptions)s - 1) n
"""
_LANES = """
INSERT INTO deliveries_lane (
    subscription_id, wake_again, "window", failures, resume_at, backoff_reason
)
SELECT id, false, 10, consecutive_failures,
    CASE WHEN consecutive_failures > 0 THEN now() + interval '4 minutes' END, last_error
FROM subscriptions_subscription
"""
_SECRETS = """
INSERT INTO subscriptions_signingsecret (subscription_id, ciphertext, created_at)
SELECT id, 'none', created_at FROM subscriptions_subscription
"""
_AUDIT = """
INSERT INTO subscriptions_auditentry (
    at, action, subscription_id, subscription_name, tenant, actor, via, detail, told,
    notice_attempts, notice_error
)
SELECT now() - %(days)s * interval '1 day' * (1 - n / %(audit)s::float8),
    (array['tripped', 'recovered', 'degraded', 'tested', 'reset', 'paused', 'resumed', 'replayed'])
        [1 + n %% 8],
    s.id, s.name, s.tenant, CASE WHEN n %% 8 < 3 THEN '' ELSE 'alice' END,
    CASE WHEN n %% 8 < 3 THEN 'system' ELSE (array['admin', 'api', 'command'])[1 + n %% 3] END,
    '{"error": "503 Service Unavailable", "failures": 5, "threshold": 5}', '["mail"]', 1, ''
FROM generate_series(1, %(audit)s) n
JOIN (SELECT *, row_number() OVER (ORDER BY id) AS place FROM subscriptions_subscription) s
    ON s.place = 1 + n %% %(subscriptions)s
ORDER BY n
"""
_MINUTES = """
INSERT INTO deliveries_minuterollup (
    minute, succeeded, failed, retried, held, attempt_ms, arrival_ms
)
SELECT date_trunc('minute', now()) - n * interval '1 minute', 4000 + n %% 500, n %% 50, n %% 90,
    n %% 7, array_fill(300, array[%(attempt_buckets)s]), array_fill(200, array[%(arrival_buckets)s])
FROM generate_series(0, 2879) n
"""
_HOURS = """
INSERT INTO deliveries_hourrollup (hour, subscription_id, succeeded, failed)
SELECT date_trunc('hour', now()) - h * interval '1 hour', id, 200 + h,
    CASE WHEN consecutive_failures > 0 THEN 40 ELSE 0 END
FROM subscriptions_subscription, generate_series(0, 47) h
"""
_EVENTS = """
INSERT INTO deliveries_event (id, topic, type, body, created_at, tenant)
SELECT 'event-' || lpad(n::text, 10, '0'), 'shop-' || g.number || '.order.' || n %% 7, 'order',
    convert_to('{"id":"event-' || n || '","payload":{"customer":"Ada","note":"'
        || repeat('n', 100) || '"}}', 'UTF8'),
    at.at, CASE WHEN g.number %% 3 = 0 THEN 'tenant-' || g.number ELSE '' END
FROM generate_series(%(first)s::int, %(last)s::int) n
CROSS JOIN LATERAL (SELECT n %% %(groups)s AS number) g
CROSS JOIN LATERAL (
    SELECT now() - %(days)s * interval '1 day' * (1 - n / %(events)s::float8) AS at
) at
"""
# What came within the last fifth for a tripped subscription is held; what came just now for one
# that fails is due.
_DELIVERIES = """
WITH receivers AS MATERIALIZED (
    SELECT id, tenant, auto_disabled_at, consecutive_failures,
        split_part(name, ' ', 2)::int AS number FROM subscriptions_subscription
), made AS MATERIALIZED (
    SELECT 'event-' || lpad(n::text, 10, '0') AS event_id, n, s.*,
        now() - %(days)s * interval '1 day' * (1 - n / %(events)s::float8) AS at,
        CASE
            WHEN s.auto_disabled_at IS NOT NULL AND n > 0.8 * %(events)s THEN 'held'
            WHEN s.auto_disabled_at IS NULL AND s.consecutive_failures > 0
                AND n > 0.98 * %(events)s THEN 'pending'
            WHEN (n * 31 + s.number) %% 1000 < 25 THEN 'failed'
            WHEN (n * 31 + s.number) %% 1000 < 33 THEN 'discarded'
            ELSE 'succeeded'
        END AS status
    FROM generate_series(%(first)s::int, %(last)s::int) n
    JOIN receivers s ON s.number / %(fan_out)s = n %% %(groups)s
), delivered AS (
    INSERT INTO deliveries_delivery (
        event_id, subscription_id, status, next_attempt_at, attempt_count, retries_used, last_error,
        created_at, held_at, finished_at, tenant
    )
    SELECT event_id, id, status,
        CASE WHEN status = 'pending' THEN now() + (n %% 300) * interval '1 minute' END,
        CASE status WHEN 'succeeded' THEN 1 + (n %% 50 = 0)::int WHEN 'discarded' THEN 0
            ELSE 4 END,
        3, CASE WHEN status IN ('held', 'pending', 'failed') THEN '503 Service Unavailable'
            ELSE '' END,
        at, CASE WHEN status = 'held' THEN at END,
        CASE WHEN status NOT IN ('held', 'pending') THEN at END, tenant
    FROM made ORDER BY n, number
    RETURNING id, status, attempt_count, created_at
)
INSERT INTO deliveries_attempt (
    delivery_id, number, outcome, status_code, error, response_body, remote_address, started_at,
    duration_ms
)
SELECT id, number, good.outcome,
    CASE good.outcome WHEN 'success' THEN 200 WHEN 'http' THEN 503 END,
    CASE good.outcome WHEN 'success' THEN '' WHEN 'http' THEN '503 Service Unavailable'
        ELSE 'no answer within 10 s' END,
    '', '203.0.113.7', created_at + number * interval '1 second', 3 + id %% 200
FROM delivered
CROSS JOIN LATERAL generate_series(1, attempt_count) number
CROSS JOIN LATERAL (
    SELECT CASE WHEN status = 'succeeded' AND number = attempt_count THEN 'success'
        WHEN id %% 10 < 7 THEN 'http' ELSE 'timeout' END AS outcome
) good
"""

_HELD = """
INSERT INTO deliveries_delivery (
    event_id, subscription_id, status, attempt_count, retries_used, last_error, created_at, held_at,
    tenant
)
SELECT e.id, s.id, 'held', 0, 0, '', e.created_at, e.created_at, s.tenant
FROM generate_series(%(first)s::int, %(last)s::int) n
JOIN deliveries_event e ON e.id = 'event-' || lpad(n::text, 10, '0')
CROSS JOIN (SELECT id, tenant FROM subscriptions_subscription WHERE name = 'receiver 0') s
CROSS JOIN generate_series(1, %(held)s)
"""


def fill(connection: psycopg.Connection[Any], size: Size) -> Iterator[int]:
    """Make it all; yields how many deliveries there are so far, at last when all is done."""
    values: dict[str, Any] = {
        **size._asdict(),
        "days": DAYS,
        "fan_out": FAN_OUT,
        "held": HELD,
        "groups": size.subscriptions // FAN_OUT,
        "attempt_buckets": len(ATTEMPT_BOUNDS) + 1,
        "arrival_buckets": len(ARRIVAL_BOUNDS) + 1,
    }
    for statement in (_SUBSCRIPTIONS, _LANES, _SECRETS, _AUDIT, _MINUTES, _HOURS):
        connection.execute(statement, values)
    for first in range(1, size.events + 1, _STEP):
        values |= {"first": first, "last": min(first + _STEP - 1, size.events)}
        connection.execute(_EVENTS, values)
        connection.execute(_DELIVERIES, values)
        connection.execute(_HELD, values)
        yield values["last"] * OF_EVENT
    for table in (*TABLES, "subscriptions_subscription", "subscriptions_auditentry"):
        connection.execute(f"ANALYZE {table}")


@contextmanager
def without_indexes(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """The large tables have no indexes but their keys within the block: what is made is as after
    any other way, in a third of the time. What they hold would not outlive a crash."""
    defined = connection.execute(
        """
        SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i
        WHERE i.indrelid = ANY(%s::regclass[]) AND NOT EXISTS (
            SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid
        )
        """,
        [list(TABLES)],
    ).fetchall()
    connection.execute("SET synchronous_commit = off")
    connection.execute("SET maintenance_work_mem = '512MB'")
    for table in TABLES:
        connection.execute(f"ALTER TABLE {table} SET UNLOGGED")
    for name, _ in defined:
        connection.execute(f"DROP INDEX {name}")
    yield
    for _, definition in defined:
        connection.execute(definition)
    for table in TABLES:
        connection.execute(f"VACUUM (ANALYZE) {table}")
    connection.execute("CHECKPOINT")
