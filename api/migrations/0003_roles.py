from django.db import migrations

from deliveries.roles import give


def give_keys(apps, schema_editor):
    names = [f"api.{verb}_apikey" for verb in ("view", "add", "change", "delete")]
    give(apps, schema_editor.connection.alias, *names)


class Migration(migrations.Migration):
    dependencies = [
        ("api", "0002_tenant_names"),
        ("deliveries", "0013_roles"),
    ]

    operations = [migrations.RunPython(give_keys, migrations.RunPython.noop, elidable=True)]
