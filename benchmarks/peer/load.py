"""An application with django-webhook2: `python load.py SUBSCRIPTIONS PORT EXPECTED`.

Run with the peer's own interpreter. Makes the tables and the subscriptions and says
`{"ready": true}`. Then each line of its standard input is `{"events": N}`: so many orders are
saved, one after the other, and saving an order is what emits its webhooks. Appends a line
`PATH EVENT_ID` for each delivery to the file EXPECTED, and answers with when it began and ended,
by the monotonic clock.
"""

import json
import secrets
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import django
from app import app
from django.core.management import call_command


def main(subscriptions: int, port: int, expected: Path) -> None:
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
    print(json.dumps({"ready": True}), flush=True)
    known = 0
    for line in iter(sys.stdin.readline, ""):
        began = time.monotonic()
        for number in range(json.loads(line)["events"]):
            Order.objects.create(number=f"A-{number}", customer="Ada Lovelace", note="n" * 100)
        ended = time.monotonic()
        emitted = WebhookEvent.objects.order_by("pk").values_list("url", "event_id")[known:]
        with expected.open("a") as file:
            for url, event_id in emitted:
                known += 1
                file.write(f"{urlsplit(url).path} {event_id}\n")
        print(json.dumps({"began": began, "ended": ended}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
