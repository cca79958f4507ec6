"""An application that publishes: `python publisher.py`, then commands on its standard input.

Each line is a JSON object: `do` names one of the functions below, the rest are its arguments.
Each answer is a line of JSON. Times are by the monotonic clock, in seconds.

Subscription `n` has the path `/n`. A pattern or a topic with `{n}` in it is one subscription's
own; without, it is shared by all.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")

import django

django.setup()

from django.db import connection  # noqa: E402
from load import draft, note, requests  # noqa: E402
from measuring import percentile  # noqa: E402

from api.keys import create_key  # noqa: E402
from deliveries import NewEvent, publish_many  # noqa: E402
from deliveries import publish as publish_one  # noqa: E402
from deliveries.keeping import housekeeping  # noqa: E402
from subscriptions.models import Subscription  # noqa: E402

IN_A_STATEMENT = 5000


def subscribe(
    first: int, count: int, ports: Sequence[int], patterns: Sequence[str], tenant: str = ""
) -> dict[str, Any]:
    """Make the subscriptions `first` to `first + count - 1`, in bulk."""
    for start in range(first, first + count, IN_A_STATEMENT):
        numbers = range(start, min(start + IN_A_STATEMENT, first + count))
        Subscription.objects.bulk_create(
            Subscription(
                tenant=tenant,
                name=f"receiver {n}",
                url=f"http://127.0.0.1:{ports[n % len(ports)]}/{n}",
                topic_patterns=[pattern.format(n=n) for pattern in patterns],
            )
            for n in numbers
        )
    return {}


def publish(
    ledger: str, *, events: int, threads: int = 1, seed: int = 0, **plan: Any
) -> dict[str, Any]:
    """Publish so many events from so many threads; see `_publish` for the rest of the plan.

    Appends a line `ID FIRST COUNT DUE BEGAN RETURNED` for each event to the file `ledger`. `DUE`
    is when it should have been published, by the schedule; without one, when the call began.
    """
    calls: list[float] = []
    lock = threading.Lock()
    with open(ledger, "a") as file, ThreadPoolExecutor(threads) as pool:

        def share(number: int) -> None:
            part = events // threads + (number < events % threads)
            found = _publish(file, lock, events=part, seed=seed * 1000 + number, **plan)
            with lock:
                calls.extend(found)
            connection.close()

        began = time.monotonic()
        list(pool.map(share, range(threads)))
        ended = time.monotonic()
    return {
        "began": began,
        "ended": ended,
        "publish_p50": percentile(calls, 50),
        "publish_p99": percentile(calls, 99),
        "publish_longest": max(calls),
    }


def _publish(
    file: TextIO,
    lock: threading.Lock,
    *,
    topic: str,
    first: int,
    count: int,
    events: int,
    seed: int,
    batch: int = 0,
    rate: float = 0.0,
    note_bytes: int = 100,
    tenant: str = "",
) -> list[float]:
    """Publish events one at a time, or `batch` at a time with `publish_many`.

    With `{n}` in the topic each event is for one of the `count` subscriptions from `first`, drawn
    at random; else for all of them. With `rate`, so many events a second, on a schedule that does
    not slip when a call is slow; else one call after the other. Returns the seconds of each call.
    """
    draw = random.Random(seed)
    text = note(draw, note_bytes)
    each = "{n}" in topic
    size = max(1, batch)
    calls = []
    began = time.monotonic()
    for start in range(0, events, size):
        numbers = range(start, min(start + size, events))
        targets = [first + draw.randrange(count) if each else first for _ in numbers]
        drafts = [
            NewEvent(
                topic=topic.format(n=target),
                payload=draft(number, text),
                event_type="order",
                tenant=tenant,
            )
            for number, target in zip(numbers, targets, strict=True)
        ]
        due = began + start / rate if rate else time.monotonic()
        if (early := due - time.monotonic()) > 0:
            time.sleep(early)
        called = time.monotonic()
        published = publish_many(drafts) if batch else [publish_one(**drafts[0])]
        returned = time.monotonic()
        calls.append(returned - called)
        reach = 1 if each else count
        lines = [
            f"{event.id} {target} {reach} {due} {called} {returned}\n"
            for event, target in zip(published, targets, strict=True)
        ]
        with lock:
            file.writelines(lines)
    return calls


def prune() -> dict[str, Any]:
    """Run the retention once, as beat's task and the command do."""
    began = time.monotonic()
    deliveries, events = housekeeping.prune()
    return {"seconds": time.monotonic() - began, "deliveries": deliveries, "events": events}


def make_key() -> dict[str, Any]:
    """A key of the API that may publish for everybody."""
    _, text = create_key("benchmark", ["events:write"], all_tenants=True)
    return {"key": text}


def disconnect() -> dict[str, Any]:
    """End the connections to the database; PostgreSQL then adds up what they did."""
    connection.close_pool()  # type: ignore[attr-defined]
    return {}


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "subscribe": subscribe,
    "publish": publish,
    "prune": prune,
    "make_key": make_key,
    "disconnect": disconnect,
}


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for request in requests(iter(sys.stdin.readline, "")):
        print(json.dumps(COMMANDS[request.pop("do")](**request)), flush=True)


if __name__ == "__main__":
    main()
