from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import F


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("subscriptions", "0004_topics")]

    operations = [
        AddIndexConcurrently(
            model_name="subscription",
            index=models.Index(
                F("auto_disabled_at").desc(nulls_last=True), F("name"), name="subscription_listed"
            ),
        ),
    ]
