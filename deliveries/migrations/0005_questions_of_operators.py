"""Indexes that answer operators, built without stopping the senders.

Two indexes go: those that Django makes for LIKE on texts that are keys. Nobody asks so, and each
delivery and each event paid for them.
"""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import Q

UNSUCCESSFUL = Q(status__in=["failed", "discarded"])


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("deliveries", "0004_publish")]

    operations = [
        AddIndexConcurrently(
            model_name="delivery", index=models.Index(fields=["event"], name="delivery_event")
        ),
        migrations.AlterField(
            model_name="delivery",
            name="event",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=models.DO_NOTHING,
                related_name="deliveries",
                to="deliveries.event",
            ),
        ),
        migrations.RunSQL(
            "DROP INDEX CONCURRENTLY IF EXISTS deliveries_event_id_1ebc5b35_like",
            "CREATE INDEX CONCURRENTLY deliveries_event_id_1ebc5b35_like "
            "ON deliveries_event (id varchar_pattern_ops)",
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(fields=["subscription", "id"], name="delivery_of_subscription"),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["status", "id"], name="delivery_unsuccessful", condition=UNSUCCESSFUL
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["subscription", "status", "id"],
                name="delivery_unsuccessful_of",
                condition=UNSUCCESSFUL,
            ),
        ),
        AddIndexConcurrently(
            model_name="attempt",
            index=models.Index(fields=["id"], name="attempt_answered", condition=Q(outcome="http")),
        ),
        AddIndexConcurrently(
            model_name="attempt",
            index=models.Index(
                fields=["id"], name="attempt_unanswered", condition=Q(status_code__isnull=True)
            ),
        ),
    ]
