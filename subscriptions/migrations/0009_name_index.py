"""Names are looked for in all tenants too, and listed in their order."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("subscriptions", "0008_topic_keys")]

    operations = [
        AddIndexConcurrently(
            model_name="subscription",
            index=models.Index(fields=["name"], name="subscription_name"),
        ),
    ]
