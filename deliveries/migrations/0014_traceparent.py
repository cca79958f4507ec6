"""Events keep the `traceparent` of the span that published them.

`deliveries_publish_counted` takes it as one more argument, which may be left out: a program of an
older version does, and a publisher that is not traced. One for all events of a call, because they
were published in the same span.

Neither the column nor the function reads or rewrites a row.
"""

from importlib import import_module
from typing import ClassVar

from django.db import migrations, models

BEFORE = import_module("deliveries.migrations.0011_publish_counts").PUBLISH
PUBLISH = BEFORE
for before, after in (
    (
        "distinct_tenants text[] DEFAULT NULL,",
        "distinct_tenants text[] DEFAULT NULL,\n    event_traceparent text DEFAULT '',",
    ),
    (
        "type, body, created_at, tenant)\n    SELECT",
        "type, body, created_at, tenant, traceparent)\n    SELECT",
    ),
    (
        "coalesce(tenant, '')\n    FROM unnest(\n",
        "coalesce(tenant, ''), event_traceparent\n    FROM unnest(\n",
    ),
):
    assert PUBLISH.count(before) == 1, before
    PUBLISH = PUBLISH.replace(before, after)
DROP = """
DROP FUNCTION deliveries_publish_counted(
    text[], text[], text[], bytea[], timestamptz[], text[], text[], boolean, text[], text[]
);
"""
DROP_TRACED = DROP.replace("boolean, text[], text[]", "boolean, text[], text[], text")


class Migration(migrations.Migration):
    dependencies: ClassVar = [("deliveries", "0013_roles")]

    operations: ClassVar = [
        migrations.AddField(
            model_name="event",
            name="traceparent",
            field=models.CharField(blank=True, db_default="", default="", max_length=55),
        ),
        migrations.RunSQL(DROP + PUBLISH, DROP_TRACED + BEFORE),
    ]
