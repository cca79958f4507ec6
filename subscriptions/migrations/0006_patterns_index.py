"""The index stays as it is; only Django's name for it changes. See `PatternsIndex`."""

from typing import ClassVar

from django.db import migrations

from subscriptions.topics.fields import PatternsIndex


class Migration(migrations.Migration):
    dependencies: ClassVar = [("subscriptions", "0005_listed")]

    operations: ClassVar = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.RemoveIndex("subscription", "subscription_topics"),
                migrations.AddIndex(
                    "subscription",
                    PatternsIndex(
                        fields=["topic_patterns"], name="subscription_topics", fastupdate=False
                    ),
                ),
            ]
        )
    ]
