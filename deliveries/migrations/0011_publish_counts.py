"""`deliveries_publish_counted`: as `deliveries_publish`, and says how many subscriptions matched.

Under a name of its own, because a program of an older version takes three answers and not four:
`deliveries_publish` stays for those that still run while the database is migrated.

An index for the events of a topic, built without stopping the senders.
"""

from importlib import import_module
from typing import ClassVar

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models

UNCOUNTED = import_module("deliveries.migrations.0009_tenants").PUBLISH

# One more answer, `matched`: for each id of `recorded` how many subscriptions of the event's own
# tenant it is delivered to. Those for all tenants, which are the application's, are not counted
# among another tenant's: it is told of its own.
PUBLISH = UNCOUNTED
for before, after in (
    ("deliveries_publish(", "deliveries_publish_counted("),
    (
        "OUT recorded text[], OUT to_wake",
        "OUT recorded text[], OUT matched integer[], OUT to_wake",
    ),
    ("SELECT ARRAY(SELECT id FROM event),", "SELECT counted.ids, counted.numbers,"),
    (
        "INTO recorded, to_wake, to_recover;",
        """\
FROM (
    SELECT coalesce(array_agg(event.id), '{}') AS ids,
        coalesce(array_agg(coalesce(matches.number, 0)), '{}') AS numbers
    FROM event LEFT JOIN (
        SELECT topic, tenant, count(*)::integer AS number FROM target
        WHERE subscription_tenant = tenant GROUP BY topic, tenant
    ) AS matches USING (topic, tenant)
) AS counted
INTO recorded, matched, to_wake, to_recover;""",
    ),
):
    assert before in PUBLISH, before
    PUBLISH = PUBLISH.replace(before, after)
UNDO = """
DROP FUNCTION deliveries_publish_counted(
    text[], text[], text[], bytea[], timestamptz[], text[], text[], boolean, text[], text[]
);
"""


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies: ClassVar = [("deliveries", "0010_tenants_history")]

    operations: ClassVar = [
        migrations.RunSQL(PUBLISH, UNDO),
        AddIndexConcurrently(
            model_name="event",
            index=models.Index(fields=["topic", "created_at", "id"], name="event_of_topic"),
        ),
    ]
