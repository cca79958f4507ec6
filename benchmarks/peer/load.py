"""The backlog of django-webhook2: `python load.py EVENTS SUBSCRIPTIONS PORT EXPECTED`.

Run with the peer's own interpreter. Makes the tables, the subscriptions and the orders; saving an
order is what emits its webhooks. Writes a line `PATH EVENT_ID` for each delivery to the file
EXPECTED.
"""

import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

import django
from app import app
from django.core.management import call_command


def main(events: int, subscriptions: int, port: int, expected: Path) -> None:
    app.set_default()
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)

    from django_webhook.models import Webhook, WebhookEvent, WebhookSecret, WebhookTopic
    from shop.models import Order

    topic = WebhookTopic.objects.get(name="shop.Order/create")
    for number in range(subscriptions):
        webhook = Webhook.objects.create(url=f"http://127.0.0.1:{port}/{number}")
        webhook.topics.set([topic])
        WebhookSecret.objects.create(webhook=webhook, token=secrets.token_urlsafe(32))
    for number in range(events):
        Order.objects.create(number=f"A-{number}", customer="Ada Lovelace", note="n" * 100)
    with expected.open("w") as file:
        for url, event_id in WebhookEvent.objects.values_list("url", "event_id"):
            file.write(f"{urlsplit(url).path} {event_id}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
