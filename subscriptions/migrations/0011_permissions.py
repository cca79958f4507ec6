from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("subscriptions", "0010_audit")]

    operations = [
        migrations.AlterModelOptions(
            name="subscription",
            options={
                "ordering": ["tenant", "name"],
                "permissions": [
                    ("reset_subscription", "Can reset the circuit of a subscription"),
                    ("pause_subscription", "Can pause and resume a subscription"),
                    ("test_subscription", "Can send a test event to a subscription"),
                    ("rotate_subscription", "Can rotate the secret of a subscription"),
                    ("replay_subscription", "Can replay deliveries of a subscription"),
                ],
            },
        ),
        migrations.AlterModelOptions(
            name="tripfuse",
            options={"permissions": [("reset_fuse", "Can reset the fuse")]},
        ),
    ]
