from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("deliveries", "0002_storage")]

    operations = [
        migrations.AddField(
            model_name="lane",
            name="discard_before",
            field=models.DateTimeField(null=True),
        ),
    ]
