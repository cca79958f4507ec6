"""Tenants, and `deliveries_publish`: all that `publish` and `publish_many` do in the database.

An event reaches the subscriptions of its own tenant, and those of the application that are marked
`all_tenants`: the statement says so of each row, and reads only such rows. The index
(`subscription_topic_keys`) has each pattern behind its tenant. An event of the application looks
its patterns up once, because what is for all tenants is the application's own; any other event
twice, behind its tenant and among those for all.

A function, because planner settings can be bound to one (`SET`): they hold while it runs, and
nothing of them is left on the application's connection. They make its plan the same whatever
PostgreSQL knows of the tables, be it from before they were filled, and made once a connection:

- Subscriptions are read by the index (GIN, which is always read as a bitmap) alone, and lanes by
  their key, never from end to end (`enable_seqscan`). Each LATERAL is a look-up of its own;
  `OFFSET 0` and `LIMIT 1` keep the planner from making a join of whole tables of it. The first
  `OFFSET 0` also keeps the comparison of tenants away from other indexes.
- The keys are made once, and not for each row that the index finds: the second `OFFSET 0`.
- Events meet the matches of their topic by a hash, not each by each (`enable_mergejoin`, whose
  sorting is dearer, is off). Nothing is remembered of lanes that are looked up once each
  (`enable_memoize`).

Locks: none but those of the inserted rows. Events are inserted in the order of their ids, so that
two calls with the same ids cannot wait for each other. Deliveries are inserted subscription by
subscription, which keeps their entries in `delivery_due` side by side and costs least to sort,
and for each subscription in the order in which the events were published: they are sent so.

A program of an older version, which gives no tenants, publishes for the application itself.
"""

from importlib import import_module
from typing import ClassVar

from django.db import migrations, models

# The arguments: the events, column by column; each tenant and topic among them once, with the
# patterns that match it, one a line; whether the statement is committed as soon as it is over; and
# the tenants of either, which may be left out.
#
# What comes back: the ids that are new; whom to wake; and whom to wake in the queue of those that
# are failing. One whose lane is backing off needs no wake-up; nor does a failing one that is being
# tried just now, because whoever tries it looks again after, if this is committed by then. (What
# falls into the moment between is found by the sweep.)
PUBLISH = r"""
CREATE FUNCTION deliveries_publish(
    event_ids text[], event_topics text[], event_types text[], event_bodies bytea[],
    event_times timestamptz[], distinct_topics text[], candidates text[], commits_now boolean,
    event_tenants text[] DEFAULT NULL, distinct_tenants text[] DEFAULT NULL,
    OUT recorded text[], OUT to_wake text[], OUT to_recover text[]
) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
SET enable_bitmapscan = on
SET enable_hashjoin = on
SET enable_mergejoin = off
SET enable_memoize = off
SET jit = off
AS $$
BEGIN
WITH event AS (
    INSERT INTO deliveries_event (id, topic, type, body, created_at, tenant)
    SELECT id, topic, type, body, created_at, coalesce(tenant, '')
    FROM unnest(
        event_ids, event_topics, event_types, event_bodies, event_times, event_tenants
    ) AS e (id, topic, type, body, created_at, tenant)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, topic, tenant, created_at
), target AS MATERIALIZED (
    SELECT asked.topic, asked.tenant, s.id AS subscription_id, s.tenant AS subscription_tenant,
        s.enabled, s.consecutive_failures > 0 OR coalesce(lane.failures > 0, false) AS failing,
        coalesce(
            lane.resume_at > now()
            OR (commits_now AND lane.failures > 0 AND lane.lease_until > now()),
            false
        ) AS needs_no_wake_up
    FROM (
        SELECT topic, coalesce(tenant, '') AS tenant, string_to_array(
            CASE WHEN tenant > '' THEN
                tenant || E'\t' || replace(patterns, E'\n', E'\n' || tenant || E'\t')
                || E'\n\t' || replace(patterns, E'\n', E'\n\t')
            ELSE patterns END, E'\n'
        ) AS keys
        FROM unnest(distinct_topics, candidates, distinct_tenants) AS a (topic, patterns, tenant)
        OFFSET 0
    ) AS asked
    CROSS JOIN LATERAL (
        SELECT id, tenant, all_tenants, enabled, consecutive_failures
        FROM subscriptions_subscription
        WHERE subscriptions_topic_keys(tenant, all_tenants, topic_patterns) COLLATE "C"
                && asked.keys
            AND (enabled OR auto_disabled_at IS NOT NULL)
        OFFSET 0
    ) AS s
    LEFT JOIN LATERAL (
        SELECT failures, resume_at, lease_until FROM deliveries_lane
        WHERE subscription_id = s.id LIMIT 1
    ) AS lane ON true
    WHERE s.tenant = asked.tenant OR s.all_tenants
), delivery AS (
    INSERT INTO deliveries_delivery (
        event_id, subscription_id, tenant, status, next_attempt_at, attempt_count, retries_used,
        last_error, created_at, held_at
    )
    SELECT event.id, subscription_id, subscription_tenant,
        CASE WHEN enabled THEN 'pending' ELSE 'held' END,
        CASE WHEN enabled THEN now() END, 0, 0, '', now(), CASE WHEN NOT enabled THEN now() END
    FROM event JOIN target USING (topic, tenant)
    ORDER BY subscription_id, event.created_at, event.id
)
SELECT ARRAY(SELECT id FROM event),
    ARRAY(
        SELECT DISTINCT subscription_id FROM target
        WHERE enabled AND NOT needs_no_wake_up AND NOT failing
    )::text[],
    ARRAY(
        SELECT DISTINCT subscription_id FROM target
        WHERE enabled AND NOT needs_no_wake_up AND failing
    )::text[]
INTO recorded, to_wake, to_recover;
END
$$;
"""
WITHOUT_TENANTS = """
DROP FUNCTION deliveries_publish(
    text[], text[], text[], bytea[], timestamptz[], text[], text[], boolean
);
"""
WITH_TENANTS = WITHOUT_TENANTS.replace("boolean", "boolean, text[], text[]")
BEFORE = import_module("deliveries.migrations.0007_publish_reads_less").PUBLISH


class Migration(migrations.Migration):
    dependencies: ClassVar = [
        ("deliveries", "0008_delivery_history"),
        ("subscriptions", "0008_topic_keys"),
    ]

    operations: ClassVar = [
        migrations.AddField(
            model_name="event",
            name="tenant",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.AddField(
            model_name="delivery",
            name="tenant",
            field=models.CharField(blank=True, db_default="", default="", max_length=64),
        ),
        migrations.RunSQL(WITHOUT_TENANTS + PUBLISH, WITH_TENANTS + BEFORE),
    ]
