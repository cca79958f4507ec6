from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies: ClassVar = [("subscriptions", "0002_topic_index")]

    operations: ClassVar = [
        migrations.AddField(
            model_name="subscription",
            name="failing_by_network",
            field=models.BooleanField(db_default=False, default=False, editable=False),
        ),
        migrations.RenameField(model_name="tripfuse", old_name="mended_at", new_name="reset_at"),
    ]
