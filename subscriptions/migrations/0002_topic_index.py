"""Triggers that tell the processes' topic indexes what changed (see `subscriptions.index`).

They stand in the database so that every way of changing a subscription counts: `bulk_create`,
`update()`, SQL by hand.

A bump locks the one version row until its transaction ends, so transactions that change
patterns wait for one another. That is what makes versions visible in their order; without it,
a process could take a later version for the whole and never see an earlier one that was
committed after it. Circuit updates and other columns bump nothing.
"""

from typing import ClassVar

from django.db import migrations

FORWARD = """
CREATE FUNCTION subscriptions_topic_index_bump() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    own CONSTANT bigint := pg_current_xact_id()::text::bigint;
    began CONSTANT bigint := floor(extract(epoch FROM now()) * 1000000)::bigint;
    bumped bigint;
BEGIN
    -- Once for a transaction: ten thousand changed rows are one version. The time is compared too,
    -- because after a restore into another cluster the number of the transaction may recur.
    SELECT version INTO bumped FROM subscriptions_topicindexversion
        WHERE id = 1 AND transaction = own AND version >= began;
    IF FOUND THEN
        RETURN bumped;
    END IF;
    -- Microseconds, so that no version comes twice, even if the row was lost or a restore
    -- brought an old one back; or one more than the last, of a transaction that began later.
    INSERT INTO subscriptions_topicindexversion AS current (id, version, transaction)
        VALUES (1, began, own)
        ON CONFLICT (id) DO UPDATE SET
            version = greatest(current.version + 1, excluded.version),
            transaction = excluded.transaction
        RETURNING current.version INTO bumped;
    RETURN bumped;
END
$$;

CREATE FUNCTION subscriptions_topic_index_rows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bumped bigint;
BEGIN
    -- Each version has a row in the log, so a statement that changed nothing makes no version.
    IF EXISTS (SELECT FROM changed) THEN
        bumped := subscriptions_topic_index_bump();
        INSERT INTO subscriptions_topicindexchange (version, subscription_id)
            SELECT bumped, id FROM changed;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION subscriptions_topic_index_update() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bumped CONSTANT bigint := subscriptions_topic_index_bump();
BEGIN
    INSERT INTO subscriptions_topicindexchange (version, subscription_id) VALUES (bumped, NEW.id);
    IF OLD.id <> NEW.id THEN
        INSERT INTO subscriptions_topicindexchange (version, subscription_id)
            VALUES (bumped, OLD.id);
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION subscriptions_topic_index_truncate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- No subscription: all of them.
    INSERT INTO subscriptions_topicindexchange (version, subscription_id)
        VALUES (subscriptions_topic_index_bump(), NULL);
    RETURN NULL;
END
$$;

CREATE TRIGGER subscriptions_topic_index_insert AFTER INSERT ON subscriptions_subscription
    REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION subscriptions_topic_index_rows();

CREATE TRIGGER subscriptions_topic_index_delete AFTER DELETE ON subscriptions_subscription
    REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION subscriptions_topic_index_rows();

-- For each row: PostgreSQL has no transition tables for a list of columns, and a trigger on every
-- update would run for each circuit update.
CREATE TRIGGER subscriptions_topic_index_update
    AFTER UPDATE OF id, topic_patterns ON subscriptions_subscription
    FOR EACH ROW
    WHEN (OLD.topic_patterns IS DISTINCT FROM NEW.topic_patterns OR OLD.id <> NEW.id)
    EXECUTE FUNCTION subscriptions_topic_index_update();

CREATE TRIGGER subscriptions_topic_index_truncate AFTER TRUNCATE ON subscriptions_subscription
    FOR EACH STATEMENT EXECUTE FUNCTION subscriptions_topic_index_truncate();

-- The subscriptions that are there already.
INSERT INTO subscriptions_topicindexchange (version, subscription_id)
    VALUES (subscriptions_topic_index_bump(), NULL);
"""

BACKWARD = """
DROP TRIGGER subscriptions_topic_index_truncate ON subscriptions_subscription;
DROP TRIGGER subscriptions_topic_index_update ON subscriptions_subscription;
DROP TRIGGER subscriptions_topic_index_delete ON subscriptions_subscription;
DROP TRIGGER subscriptions_topic_index_insert ON subscriptions_subscription;
DROP FUNCTION subscriptions_topic_index_truncate();
DROP FUNCTION subscriptions_topic_index_update();
DROP FUNCTION subscriptions_topic_index_rows();
DROP FUNCTION subscriptions_topic_index_bump();
"""


class Migration(migrations.Migration):
    dependencies: ClassVar = [("subscriptions", "0001_initial")]

    operations: ClassVar = [migrations.RunSQL(FORWARD, BACKWARD)]
