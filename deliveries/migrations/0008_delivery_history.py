from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("deliveries", "0007_publish_reads_less")]

    operations = [
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["subscription", "id"], name="delivery_history", condition=Q(id__gt=0)
            ),
        ),
        RemoveIndexConcurrently(model_name="delivery", name="delivery_of_subscription"),
    ]
