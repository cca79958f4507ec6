from django.apps import apps as installed
from django.db import migrations

from deliveries.roles import make_groups


def make(apps, schema_editor):
    make_groups(apps, schema_editor.connection.alias)


class Migration(migrations.Migration):
    dependencies = [
        ("deliveries", "0012_rollups"),
        ("subscriptions", "0011_permissions"),
    ]
    if installed.is_installed("django.contrib.auth"):
        dependencies += [
            ("auth", "0012_alter_user_first_name_max_length"),
            ("contenttypes", "0002_remove_content_type_name"),
        ]

    operations = [
        migrations.AlterModelOptions(
            name="delivery",
            options={
                "ordering": ["-id"],
                "permissions": [
                    ("resend_delivery", "Can send a delivery again"),
                    ("discard_delivery", "Can discard a delivery"),
                ],
                "verbose_name_plural": "deliveries",
            },
        ),
        migrations.RunPython(make, migrations.RunPython.noop, elidable=True),
    ]
