"""Roll-ups, and how they are stored: rows that change every few seconds, in no index but the key."""

from django.db import migrations, models

import deliveries.models


class Migration(migrations.Migration):
    dependencies = [
        ("deliveries", "0011_publish_counts"),
    ]

    operations = [
        migrations.CreateModel(
            name="MinuteRollup",
            fields=[
                ("minute", models.DateTimeField(primary_key=True, serialize=False)),
                ("succeeded", models.BigIntegerField()),
                ("failed", models.BigIntegerField()),
                ("retried", models.BigIntegerField()),
                ("held", models.BigIntegerField()),
                ("attempt_ms", deliveries.models.BigIntegers()),
                ("arrival_ms", deliveries.models.BigIntegers()),
            ],
        ),
        migrations.CreateModel(
            name="RollupWriter",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                ("number", models.BigIntegerField()),
                ("written_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="HourRollup",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "hour",
                        "subscription_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("hour", models.DateTimeField()),
                ("subscription_id", models.UUIDField()),
                ("succeeded", models.BigIntegerField()),
                ("failed", models.BigIntegerField()),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("failed__gt", 0)),
                        fields=["hour"],
                        name="hour_with_failures",
                    )
                ],
            },
        ),
        migrations.RunSQL(
            """
            ALTER TABLE deliveries_minuterollup SET (fillfactor = 50);
            ALTER TABLE deliveries_hourrollup SET (
                fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05
            );
            """,
            migrations.RunSQL.noop,
        ),
    ]
