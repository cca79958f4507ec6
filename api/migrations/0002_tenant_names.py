"""A key's tenant is judged as a subscription's is. Nothing changes in the database."""

from django.db import migrations, models

import subscriptions.validators


class Migration(migrations.Migration):
    dependencies = [("api", "0001_initial")]

    operations = [
        migrations.AlterField(
            model_name="apikey",
            name="tenant",
            field=models.CharField(
                blank=True,
                default="",
                help_text="The tenant that the key is bound to; empty: the application itself.",
                max_length=64,
                validators=[subscriptions.validators.validate_tenant_name],
            ),
        ),
    ]
