"""The statements of settling, each with its locks and indexes.

No statement waits for a row. What another transaction has locked is skipped, all of its
subscription with it, and said to be locked; the caller offers it again a little later. So nothing
here can be part of a deadlock, and one subscription's row, held by an operator's open transaction,
holds up none of the others in the same batch. All rows are found by primary keys; attempts by
`attempt_number` (delivery, number).

What is written comes as JSON: PostgreSQL reads it as quickly as arrays, and Python makes it six
times as quickly.
"""

from subscriptions.database import Statement

# The subscriptions whose circuits are about to count failures.
LOCK_SUBSCRIPTIONS = Statement("""
SELECT id FROM subscriptions_subscription WHERE id = ANY(%(ids)s::uuid[])
ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
""")

EXISTING_SUBSCRIPTIONS = Statement("""
SELECT id FROM subscriptions_subscription WHERE id = ANY(%(ids)s::uuid[])
""")

_RESULT = """result AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(results)s::json) AS r (
        id bigint, lease timestamptz, status text, delay float8, retries int, number int,
        outcome text, code int, error text, body text, address text, started float8, duration int
    )
)"""

# One attempt for each request. A result that is written twice, because a connection was lost with
# the answer to its commit, is one attempt. A result that comes after its lease was over takes the
# place of the attempt that was recorded as unknown. Only attempts that come back were recorded by
# this statement, and count for the circuit.
_ATTEMPTS = """
    INSERT INTO deliveries_attempt (
        delivery_id, number, outcome, status_code, error, response_body, remote_address,
        started_at, duration_ms
    )
    SELECT id, number, outcome, code, error, body, address, to_timestamp(started), duration
    FROM {results}
    ON CONFLICT (delivery_id, number) DO UPDATE SET
        outcome = excluded.outcome, status_code = excluded.status_code, error = excluded.error,
        response_body = excluded.response_body, remote_address = excluded.remote_address,
        started_at = excluded.started_at, duration_ms = excluded.duration_ms
    WHERE deliveries_attempt.outcome = 'unknown'
"""

RECORD_ATTEMPTS = Statement(f"""
WITH {_RESULT}
{_ATTEMPTS.format(results="result ORDER BY id")}
RETURNING delivery_id, number
""")

# A success is a success, whatever happened to the delivery meanwhile: the receiver has it. Any
# other result counts only while this claim's lease is the delivery's: later claims know better.
# What was held or discarded while its request was in flight stays so.
#
# The circuits of `healthy` have nothing but successes in this batch. A success of a healthy
# subscription is written at most once a second: a row that changes thousands of times a second
# would be all that the database does. `recovered` says that the fuse is to be reset. `stuck` are
# those that have to count it and are locked.
#
# Of lanes that are released: what was learned in an older epoch, before a reset or of another
# URL, is forgotten, and what was claimed and not sent is given back. No lane is released before
# its results are written.
SETTLE = Statement(f"""
WITH counting AS MATERIALIZED (
    SELECT s.id, r.epoch
    FROM unnest(%(healthy)s::text::uuid[], %(healthy_epochs)s::text::bigint[]) AS r (id, epoch)
    JOIN subscriptions_subscription s ON s.id = r.id
    WHERE s.circuit_epoch = r.epoch AND s.enabled AND (
        s.consecutive_failures > 0 OR s.last_error <> ''
        OR s.last_success_at IS NULL OR s.last_success_at < now() - interval '1 second'
    )
), succeeding AS MATERIALIZED (
    SELECT s.id, counting.epoch, s.failing_by_network AS recovered
    FROM counting JOIN subscriptions_subscription s ON s.id = counting.id
    ORDER BY s.id FOR NO KEY UPDATE OF s SKIP LOCKED
), counted AS (
    UPDATE subscriptions_subscription s SET
        consecutive_failures = 0, last_error = '', failing_by_network = false,
        last_success_at = now(), updated_at = now()
    FROM succeeding r WHERE s.id = r.id AND s.enabled AND s.circuit_epoch = r.epoch
    RETURNING r.recovered
), stuck AS MATERIALIZED (
    SELECT id FROM counting WHERE id NOT IN (SELECT id FROM succeeding)
), {_RESULT}, unlocked AS MATERIALIZED (
    SELECT id FROM deliveries_delivery
    WHERE id = ANY(ARRAY(SELECT id FROM result))
        AND subscription_id NOT IN (SELECT id FROM stuck)
    ORDER BY id FOR UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT id, subscription_id FROM deliveries_delivery
    WHERE id = ANY(ARRAY(SELECT id FROM result)) AND id NOT IN (SELECT id FROM unlocked)
), lane_end AS MATERIALIZED (
    SELECT e.* FROM json_to_recordset(%(ends)s::json) AS e (
        subscription_id uuid, token uuid, epoch bigint, "window" int, failures int,
        backoff float8, reason text, retrying_id bigint
    )
), ending AS MATERIALIZED (
    SELECT l.subscription_id, l.wake_again, e."window", e.failures, e.backoff, e.reason,
        e.retrying_id, coalesce(s.circuit_epoch = e.epoch, false) AS current
    FROM lane_end e
    JOIN deliveries_lane l ON l.subscription_id = e.subscription_id AND l.lease_token = e.token
    LEFT JOIN subscriptions_subscription s ON s.id = e.subscription_id
    WHERE e.subscription_id NOT IN (SELECT subscription_id FROM locked)
        AND e.subscription_id NOT IN (SELECT id FROM stuck)
    ORDER BY l.subscription_id FOR UPDATE OF l SKIP LOCKED
), released AS (
    UPDATE deliveries_lane lane SET
        lease_token = NULL, lease_until = NULL, wake_again = false,
        "window" = CASE WHEN current THEN ending."window" ELSE lane."window" END,
        failures = CASE WHEN current THEN ending.failures ELSE lane.failures END,
        retrying_id = CASE WHEN current THEN ending.retrying_id ELSE lane.retrying_id END,
        resume_at = CASE
            WHEN NOT current THEN lane.resume_at
            WHEN ending.backoff > 0 THEN now() + ending.backoff * interval '1 second' END,
        backoff_reason = CASE WHEN current THEN ending.reason ELSE lane.backoff_reason END
    FROM ending WHERE lane.subscription_id = ending.subscription_id
    RETURNING lane.subscription_id, ending.wake_again
), updated AS (
    UPDATE deliveries_delivery d SET
        status = CASE
            WHEN r.status = 'succeeded' THEN 'succeeded'
            WHEN d.lease_until IS DISTINCT FROM r.lease THEN d.status
            WHEN d.status = 'pending' THEN r.status
            WHEN d.status = 'held' AND r.status = 'failed' THEN 'failed'
            ELSE d.status END,
        next_attempt_at = CASE
            WHEN r.status = 'succeeded' THEN NULL
            WHEN d.lease_until IS DISTINCT FROM r.lease THEN d.next_attempt_at
            WHEN d.status = 'pending' AND r.status = 'pending'
                THEN now() + r.delay * interval '1 second' END,
        held_at = CASE
            WHEN d.status = 'pending' AND r.status = 'held' THEN now() ELSE d.held_at END,
        finished_at = CASE
            WHEN r.status = 'succeeded' OR (
                r.status = 'failed' AND d.status IN ('pending', 'held')
                AND d.lease_until IS NOT DISTINCT FROM r.lease
            ) THEN now() ELSE d.finished_at END,
        retries_used = CASE
            WHEN d.status = 'pending' AND d.lease_until IS NOT DISTINCT FROM r.lease
                THEN r.retries
            ELSE d.retries_used END,
        last_error = CASE
            WHEN r.status = 'succeeded' THEN ''
            WHEN d.status IN ('pending', 'held')
                AND d.lease_until IS NOT DISTINCT FROM r.lease THEN r.error
            ELSE d.last_error END,
        attempt_count = greatest(d.attempt_count, r.number),
        lease_until = CASE
            WHEN r.status = 'succeeded' OR d.lease_until IS NOT DISTINCT FROM r.lease THEN NULL
            ELSE d.lease_until END
    FROM result r WHERE d.id = r.id AND r.id NOT IN (SELECT id FROM locked)
), attempt AS (
{_ATTEMPTS.format(results="result WHERE id NOT IN (SELECT id FROM locked)")}
), given_back AS (
    UPDATE deliveries_delivery SET lease_until = NULL WHERE id = ANY(ARRAY(
        SELECT d.id
        FROM unnest(%(unsent)s::text::bigint[], %(leases)s::text::timestamptz[]) AS u (id, lease)
        JOIN deliveries_delivery d ON d.id = u.id AND d.lease_until = u.lease
        ORDER BY d.id FOR UPDATE OF d SKIP LOCKED
    ))
)
SELECT ARRAY(SELECT subscription_id FROM released WHERE wake_again),
    ARRAY(SELECT id FROM locked),
    ARRAY(
        SELECT e.subscription_id FROM lane_end e
        JOIN deliveries_lane l ON l.subscription_id = e.subscription_id AND l.lease_token = e.token
        WHERE e.subscription_id NOT IN (SELECT subscription_id FROM ending)
    ),
    (SELECT now() FROM counted WHERE recovered LIMIT 1)
""")
