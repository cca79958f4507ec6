"""Indexes that answer operators, and a tenant's own program; built without stopping the senders."""

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    # An index cannot be built concurrently inside a transaction.
    atomic = False

    dependencies = [("deliveries", "0009_tenants")]

    operations = [
        AddIndexConcurrently(
            model_name="event",
            index=models.Index(
                fields=["tenant", "created_at", "id"],
                name="event_of_tenant",
                condition=~Q(tenant=""),
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["tenant", "id"], name="delivery_of_tenant", condition=~Q(tenant="")
            ),
        ),
        AddIndexConcurrently(
            model_name="delivery",
            index=models.Index(
                fields=["tenant", "status", "id"],
                name="delivery_unsuccessful_tenant",
                condition=Q(status__in=["failed", "discarded"]) & ~Q(tenant=""),
            ),
        ),
    ]
