"""The statements of claiming, each with its locks and indexes.

All leases are by the database's clock. Locks are taken in the order subscriptions, lanes,
deliveries, each in the order of their ids. No statement waits for a row: what another transaction
has locked is skipped and said to be locked, and the caller asks again a little later.

Indexes: the primary keys; `delivery_due` (subscription, next_attempt_at, id; pending rows only)
gives each lane's rows in their order, and `delivery_held` (subscription, id; held rows only) the
oldest that is held.
"""

from subscriptions.database import Statement

_FREE = """(lane.lease_until IS NULL OR lane.lease_until < now())
            AND (lane.failures = 0 OR %(failing_too)s::bool)
            AND (lane.resume_at IS NULL OR lane.resume_at <= now())"""

# An older lease that is still there belongs to a claim that died: its request, if it was sent,
# becomes an attempt of unknown outcome, and the delivery is sent again.
_LEASED = """leased AS (
    UPDATE deliveries_delivery d
    SET lease_until = now() + %(lease)s::float8 * interval '1 second',
        attempt_count = d.attempt_count + CASE WHEN picked.lease_until IS NULL THEN 0 ELSE 1 END
    FROM picked WHERE d.id = picked.id
    RETURNING d.id, d.subscription_id, d.event_id, d.attempt_count, d.retries_used,
        picked.lease_until AS previous,
        CASE WHEN d.attempt_count = 0 AND d.held_at IS NULL
            THEN %(clock)s::float8 - date_part('epoch', now() - d.created_at) END AS published_at
), unknown AS (
    INSERT INTO deliveries_attempt (
        delivery_id, number, outcome, error, response_body, remote_address, started_at,
        duration_ms
    )
    SELECT id, attempt_count, 'unknown', %(unknown)s::text, '', '',
        previous - %(lease)s::float8 * interval '1 second', 0
    FROM leased WHERE previous IS NOT NULL
    ON CONFLICT DO NOTHING
), claimed AS (
    SELECT subscription_id,
        (now() + %(lease)s::float8 * interval '1 second')::text AS lease,
        array_agg(id ORDER BY id) AS ids, array_agg(event_id ORDER BY id) AS event_ids,
        array_agg(attempt_count ORDER BY id) AS attempts,
        array_agg(retries_used ORDER BY id) AS retries,
        array_agg(published_at ORDER BY id) AS published
    FROM leased GROUP BY subscription_id
)"""

# Bodies are fetched until they have `room` bytes together, and one in any case. The sum is over
# sizes only: what is not fetched is not read either.
_BODIES = """body AS (
    SELECT id, topic, CASE WHEN before < %(room)s THEN body END AS body, tenant, traceparent FROM (
        SELECT id, topic, body, tenant, traceparent,
            sum(octet_length(body)) OVER (ORDER BY id) - octet_length(body) AS before
        FROM deliveries_event WHERE id = ANY({ids})
    ) sized
)"""

READ_BODIES = Statement(f"""
WITH {_BODIES.format(ids="%(ids)s::text[]")}
SELECT id, topic, body, tenant, traceparent FROM body
""")

_CLAIMED = f""", {_LEASED}
SELECT subscription_id, lease, ids, event_ids, attempts, retries, published FROM claimed
"""

# Takes each lane that is free. A lane that another process holds is marked instead
# (`wake_again`), and its holder checks for due rows again before it releases the lane: a wake-up
# that comes between that check and the release finds the lane free. A lane with nothing due, or
# soon due, is left as it is. (No EXISTS: PostgreSQL may plan it as a hash of all that is due.)
#
# The due deliveries of healthy lanes are taken in the same statement. The LATERAL reads no more
# rows than it takes. What the lane's last holder changed since this statement began is seen where
# a row is locked: FOR UPDATE looks at the newest version.
#
# The rows of three kinds come in one result: a lane, what was claimed for a lane, and a body.
# Joined, `lane` and `claimed` would cost the square of their number: they have no index.
TAKE_LANES = Statement(f"""
WITH wanted AS MATERIALIZED (
    SELECT s.id FROM subscriptions_subscription s
    WHERE s.id = ANY(%(ids)s::text::uuid[]) AND coalesce(
        NOT s.enabled AND s.next_probe_at <= now() OR (
            SELECT true FROM deliveries_delivery d
            WHERE d.subscription_id = s.id AND d.status = 'pending'
                AND d.next_attempt_at < now() + interval '1 second'
            LIMIT 1
        ),
        false
    )
), unlocked AS MATERIALIZED (
    SELECT subscription_id FROM deliveries_lane
    WHERE subscription_id = ANY(ARRAY(SELECT id FROM wanted))
    ORDER BY subscription_id FOR UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT subscription_id FROM deliveries_lane
    WHERE subscription_id = ANY(ARRAY(SELECT id FROM wanted))
        AND subscription_id NOT IN (SELECT subscription_id FROM unlocked)
), taken AS (
    INSERT INTO deliveries_lane AS lane (
        subscription_id, lease_token, lease_until, wake_again, "window", failures, backoff_reason
    )
    SELECT id, %(token)s::uuid, now() + %(lease)s::float8 * interval '1 second', false, 1000, 0, ''
    FROM wanted WHERE id NOT IN (SELECT subscription_id FROM locked)
    ORDER BY id
    ON CONFLICT (subscription_id) DO UPDATE SET
        lease_token = CASE WHEN {_FREE} THEN excluded.lease_token ELSE lane.lease_token END,
        lease_until = CASE WHEN {_FREE} THEN excluded.lease_until ELSE lane.lease_until END,
        wake_again = coalesce(lane.lease_until >= now(), false)
    RETURNING lane.subscription_id,
        coalesce(lane.lease_token = %(token)s::uuid, false) AS taken, lane."window", lane.failures,
        lane.retrying_id, extract(epoch FROM lane.resume_at - now())::float8 AS backoff
), lane AS MATERIALIZED (
    SELECT taken.*, s.name, s.tenant, s.url, s.headers, s.circuit_epoch, s.max_in_flight, s.enabled,
        coalesce(NOT s.enabled AND s.recovery = 'automatic' AND s.next_probe_at <= now(), false)
            AS probe,
        ARRAY(
            SELECT secret.ciphertext FROM subscriptions_signingsecret secret
            WHERE secret.subscription_id = s.id
                AND (secret.expires_at IS NULL OR secret.expires_at > now())
            ORDER BY secret.created_at DESC, secret.id DESC
        ) AS secrets,
        CASE WHEN taken.taken AND s.enabled AND taken.failures = 0 THEN least(
            %(batch)s::int, 20 * greatest(1, least(taken."window", s.max_in_flight)),
            greatest(1, %(rows)s::int / (SELECT count(*) FROM taken WHERE taken.taken)::int)
        ) ELSE 0 END AS "limit"
    FROM taken JOIN subscriptions_subscription s ON s.id = taken.subscription_id
), picked AS MATERIALIZED (
    SELECT due.* FROM lane CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.subscription_id = lane.subscription_id AND d.status = 'pending'
            AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at, d.id LIMIT lane."limit"
        FOR UPDATE SKIP LOCKED
    ) due
), {_LEASED}, {_BODIES.format(ids="ARRAY(SELECT DISTINCT event_id FROM leased)")}
SELECT subscription_id, taken, "window", failures, retrying_id, backoff, name, tenant, url,
    headers, circuit_epoch, max_in_flight, enabled, probe, secrets, "limit",
    NULL, NULL, NULL, NULL, NULL, NULL, NULL::bytea
FROM lane
UNION ALL
SELECT subscription_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, lease, ids, event_ids, attempts, retries, published, NULL
FROM claimed
UNION ALL
SELECT subscription_id, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
FROM locked
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, id, tenant, topic, NULL, NULL, NULL, NULL, NULL,
    NULL, NULL, traceparent, NULL, NULL, NULL, NULL, NULL, body
FROM body
""")

# A failing lane sends one request: the delivery that it was trying again, once that is due,
# else the next one.
TAKE_ONE = Statement(f"""
WITH picked AS MATERIALIZED (
    SELECT due.* FROM unnest(%(ids)s::uuid[], %(retrying)s::bigint[])
        AS lane (subscription_id, retrying_id)
    CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.id = coalesce(
            (
                SELECT r.id FROM deliveries_delivery r
                WHERE r.id = lane.retrying_id AND r.subscription_id = lane.subscription_id
                    AND r.status = 'pending' AND r.next_attempt_at <= now()
            ),
            (
                SELECT n.id FROM deliveries_delivery n
                WHERE n.subscription_id = lane.subscription_id AND n.status = 'pending'
                    AND n.next_attempt_at <= now()
                ORDER BY n.next_attempt_at, n.id LIMIT 1
            )
        )
        AND d.status = 'pending'
        FOR UPDATE SKIP LOCKED
    ) due
){_CLAIMED}""")

TAKE_PROBES = Statement(f"""
WITH picked AS MATERIALIZED (
    SELECT due.* FROM unnest(%(ids)s::uuid[]) AS lane (subscription_id)
    CROSS JOIN LATERAL (
        SELECT d.id, d.subscription_id, d.lease_until FROM deliveries_delivery d
        WHERE d.subscription_id = lane.subscription_id AND d.status = 'held'
        ORDER BY d.id LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) due
){_CLAIMED}""")

# Releases lanes of which nothing is sent, and what was claimed on them, if this claim still holds
# them. `backoff`: seconds until they are worth claiming again. Returns those for which a wake-up
# came meanwhile, and those that another transaction has locked.
RELEASE = Statement("""
WITH mine AS MATERIALIZED (
    SELECT subscription_id, wake_again FROM deliveries_lane
    WHERE subscription_id = ANY(%(ids)s::uuid[]) AND lease_token = %(token)s::uuid
    ORDER BY subscription_id FOR UPDATE SKIP LOCKED
), released AS (
    UPDATE deliveries_lane lane SET
        lease_token = NULL, lease_until = NULL, wake_again = false,
        resume_at = CASE WHEN %(backoff)s::float8 > 0
            THEN now() + %(backoff)s::float8 * interval '1 second' ELSE lane.resume_at END,
        backoff_reason = CASE WHEN %(backoff)s::float8 > 0
            THEN %(reason)s::text ELSE lane.backoff_reason END
    FROM mine WHERE lane.subscription_id = mine.subscription_id
    RETURNING lane.subscription_id, mine.wake_again
), given_back AS (
    UPDATE deliveries_delivery SET lease_until = NULL
    WHERE id = ANY(ARRAY(
        SELECT d.id FROM released CROSS JOIN LATERAL (
            SELECT id FROM deliveries_delivery
            WHERE id = ANY(%(deliveries)s::bigint[]) AND subscription_id = released.subscription_id
            ORDER BY id FOR UPDATE SKIP LOCKED
        ) d
    ))
)
SELECT ARRAY(SELECT subscription_id FROM released WHERE wake_again), ARRAY(
    SELECT subscription_id FROM deliveries_lane
    WHERE subscription_id = ANY(%(ids)s::uuid[]) AND lease_token = %(token)s::uuid
        AND subscription_id NOT IN (SELECT subscription_id FROM released)
)
""")
