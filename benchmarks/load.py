"""This project's backlog: `python load.py EVENTS SUBSCRIPTIONS PORT EXPECTED`.

Makes the tables and the subscriptions and publishes the events, a hundred in a transaction; the
wake-ups wait in the broker. Writes a line `PATH EVENT_ID` for each delivery to the file EXPECTED.
"""

import os
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
BATCH = 100


def main(events: int, subscriptions: int, port: int, expected: Path) -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")
    sys.path.insert(0, str(CHECKOUT))

    import django
    from django.core.management import call_command

    django.setup()
    call_command("migrate", verbosity=0)

    from deliveries import NewEvent, publish_many
    from subscriptions.models import create_subscription

    for number in range(subscriptions):
        create_subscription(
            name=f"receiver {number}",
            url=f"http://127.0.0.1:{port}/{number}",
            topic_patterns=["order.*"],
        )
    with expected.open("w") as file:
        for first in range(0, events, BATCH):
            published = publish_many(
                NewEvent(
                    topic="order.created",
                    payload={
                        "id": number + 1,
                        "number": f"A-{number}",
                        "customer": "Ada Lovelace",
                        "note": "n" * 100,
                    },
                    event_type="order",
                )
                for number in range(first, min(first + BATCH, events))
            )
            for event in published:
                for number in range(subscriptions):
                    file.write(f"/{number} {event.id}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
