"""How the tables that change with every delivery are stored.

A claim writes the lease into the delivery's row and settling writes the rest: with room left on
the page the first of the two needs no new index entries (a heap-only update). The lane's row
changes with every claim and every release, and has no index besides its key. Both collect dead
rows quickly, and small tables stay quick only if these are swept away soon.
"""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("deliveries", "0001_initial")]

    operations = [
        migrations.RunSQL(
            """
            ALTER TABLE deliveries_delivery SET (
                fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05,
                autovacuum_vacuum_insert_scale_factor = 0.2
            );
            ALTER TABLE deliveries_lane SET (
                fillfactor = 50, autovacuum_vacuum_scale_factor = 0,
                autovacuum_vacuum_threshold = 1000
            );
            """,
            """
            ALTER TABLE deliveries_delivery RESET (
                fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_insert_scale_factor
            );
            ALTER TABLE deliveries_lane RESET (
                fillfactor, autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold
            );
            """,
        )
    ]
