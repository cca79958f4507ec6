"""The index by tenant and pattern takes the place of that by pattern.

Until the function that publishes is replaced too, by the next migration of deliveries, each event
reads all subscriptions.
"""

from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations

from subscriptions.topics.fields import PatternsIndex, topic_keys


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("subscriptions", "0007_tenants")]

    operations = [
        AddIndexConcurrently(
            model_name="subscription",
            index=PatternsIndex(topic_keys(), name="subscription_topic_keys", fastupdate=False),
        ),
        RemoveIndexConcurrently(model_name="subscription", name="subscription_topics"),
    ]
