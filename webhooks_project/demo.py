"""The story that `manage.py demo` tells. What it prints, it has measured."""

from __future__ import annotations

import itertools
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TextIO

from django.contrib.auth import get_user_model
from django.db import connection

from deliveries import publish
from deliveries.models import Attempt, Delivery
from subscriptions import circuit
from subscriptions.models import Subscription, create_subscription
from webhooks_project.receiver import Answer, Received, Receiver

EVENTS = 400
RATE = 25  # events a second
FLAKY_EVERY = 4  # of so many events, one is answered 503 at first
STORY_TIMEOUT = 60.0
# A healthy receiver is not slowed if its p99 stays below this, while another one is dead.
HEALTHY_P99 = 0.5


class Teller:
    """Tells the story, one line at a time, each with the seconds since the beginning.

    `live` lines are rewritten in place on a terminal, and thinned out elsewhere.
    """

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self._output = output
        self._began = time.monotonic()
        self._live = False
        self._last_live = 0.0

    def __call__(self, text: str) -> None:
        self._clear()
        self._output.write(f"{self._stamp()}  {text}\n" if text else "\n")
        self._output.flush()

    def live(self, text: str) -> None:
        now = time.monotonic()
        if self._output.isatty():
            self._output.write(f"\r\x1b[K{self._stamp()}  {text}"[:100])
            self._live = True
        elif now - self._last_live > 3:
            self._output.write(f"{self._stamp()}  {text}\n")
        else:
            return
        self._last_live = now
        self._output.flush()

    def _stamp(self) -> str:
        return f"{time.monotonic() - self._began:5.1f} s"

    def _clear(self) -> None:
        if self._live:
            self._output.write("\r\x1b[K")
            self._live = False


def start_afresh() -> None:
    """Forget the subscriptions, events and deliveries of an earlier demo."""
    with connection.cursor() as cursor:
        cursor.execute(
            "TRUNCATE subscriptions_subscription, subscriptions_signingsecret, deliveries_event, "
            "deliveries_delivery, deliveries_attempt, deliveries_lane CASCADE"
        )


def make_admin() -> str:
    """The superuser `admin` with a new password, which is returned."""
    users = get_user_model()
    password = secrets.token_urlsafe(9)
    user, _ = users.objects.get_or_create(
        username="admin", defaults={"is_staff": True, "is_superuser": True}
    )
    user.set_password(password)
    user.save()
    return password


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0.0 for no values."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


@dataclass
class Latencies:
    """From `publish` to the arrival at one receiver, in seconds, by event id."""

    published: dict[str, float] = field(default_factory=dict)
    arrived: dict[str, float] = field(default_factory=dict)

    def of(self, event_ids: Sequence[str]) -> list[float]:
        return [
            self.arrived[event_id] - self.published[event_id]
            for event_id in event_ids
            if event_id in self.arrived
        ]


def flaky() -> Callable[[Received], Answer]:
    """Answers the first request of every fourth event with 503, and its retries with 200."""
    known: set[str] = set()

    def respond(received: Received) -> Answer:
        first = received.id not in known
        known.add(received.id)
        return Answer(503 if first and len(known) % FLAKY_EVERY == 0 else 200)

    return respond


class Story:
    """Three receivers, one subscription that matches nothing, and what becomes of the events."""

    def __init__(self, tell: Teller) -> None:
        self.tell = tell
        self.latencies = Latencies()
        self.event_ids: list[str] = []

    def run(self, afterwards: Callable[[dict[str, Any]], None]) -> None:
        """Tell it, then call `afterwards` with the figures while the receivers still listen.

        `held` among them says whether the story ended as it should.
        """
        with ExitStack() as stack:
            healthy = stack.enter_context(Receiver(on_request=self._arrived))
            unsteady = stack.enter_context(Receiver(respond=flaky()))
            dead = stack.enter_context(Receiver())
            dead.stop()
            receivers = {"healthy": healthy, "flaky": unsteady, "dead": dead}
            subscriptions = self._subscribe(receivers)
            tripped_after = self._publish(subscriptions["dead"])
            self._tell_retries(subscriptions["flaky"])
            held = Delivery.objects.filter(
                subscription=subscriptions["dead"], status="held"
            ).count()
            self.tell(f"the dead receiver comes back; {held} deliveries are held for it")
            dead.start()
            circuit.reset([subscriptions["dead"].pk])
            self.tell("reset: its circuit is active again, gently, one request at first")
            returned = self._wait_for_the_rest(receivers)
            afterwards(self._conclude(receivers, subscriptions, tripped_after, held, returned))

    def _subscribe(self, receivers: dict[str, Receiver]) -> dict[str, Subscription]:
        wanted = {
            "healthy": ["order.>"],
            "flaky": ["order.created", "order.*.line"],
            "dead": ["order.>"],
            "quiet": ["invoice.*"],
        }
        made = {}
        for name, patterns in wanted.items():
            receiver = receivers.get(name, receivers["healthy"])
            made[name], secret = create_subscription(
                name=name, url=receiver.url, topic_patterns=patterns
            )
            if name in receivers:
                receiver.add_secret(secret)
        self.tell("four subscriptions:  healthy   order.>")
        self.tell("                     flaky     order.created   (503 for every 4th)")
        self.tell("                     dead      order.>         (nobody listens)")
        self.tell("                     quiet     invoice.*       (matches nothing)")
        return made

    def _arrived(self, received: Received) -> None:
        self.latencies.arrived.setdefault(received.id, received.at)

    def _publish(self, dead: Subscription) -> float | None:
        """Publish at a steady rate, and watch the dead receiver's circuit meanwhile."""
        self.tell(f"publishing {EVENTS} events, {RATE} a second")
        began = time.monotonic()
        tripped_after: float | None = None
        split = EVENTS
        for number in range(EVENTS):
            pause = began + number / RATE - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            event = publish("order.created", {"order": number, "total": "19.90"})
            self.latencies.published[event.id] = time.monotonic()
            self.event_ids.append(event.id)
            if number % 5 == 0:
                dead.refresh_from_db()
                self._progress(number + 1, dead)
                if tripped_after is None and dead.state == "tripped":
                    tripped_after = time.monotonic() - began
                    split = number
                    self.tell(
                        f"the dead receiver tripped after {tripped_after:.1f} s: "
                        f"{dead.consecutive_failures} failures in a row"
                    )
                    self.tell("  (an attempt and its three quick retries are one failure)")
                    self.tell(f"  last error: {dead.last_error}"[:78])
        self._tell_latency("while the dead one was failing", self.event_ids[:split])
        self._tell_latency("after it had tripped", self.event_ids[split:])
        return tripped_after

    def _progress(self, published: int, dead: Subscription) -> None:
        counts = Counter(Delivery.objects.values_list("status", flat=True))
        self.tell.live(
            f"{published:4d} published  {counts['succeeded']:4d} delivered  "
            f"{counts['pending']:3d} pending  {counts['held']:3d} held  dead: {dead.state}"
        )

    def _tell_latency(self, when: str, event_ids: Sequence[str]) -> None:
        times = self.latencies.of(event_ids)
        if times:
            self.tell(
                f"healthy, {when}: p50 {percentile(times, 0.5) * 1000:.0f} ms, "
                f"p99 {percentile(times, 0.99) * 1000:.0f} ms"
            )

    def _tell_retries(self, subscription: Subscription) -> None:
        attempts = Attempt.objects.filter(delivery__subscription=subscription).order_by("id")
        retried = attempts.filter(number__gt=1).select_related("delivery").first()
        count = attempts.filter(number__gt=1).count()
        if retried is None:
            return
        history = list(attempts.filter(delivery=retried.delivery_id))
        delays = [
            f"{(after.started_at - before.started_at).total_seconds():.2f} s"
            for before, after in itertools.pairwise(history)
        ]
        answers = " → ".join(str(attempt.status_code) for attempt in history)
        self.tell(f"the flaky one needed {count} retries; one of them: {answers}")
        self.tell(f"  after {', '.join(delays)} (the first retry is planned after 0.2 s)")

    def _wait_for_the_rest(self, receivers: dict[str, Receiver]) -> float:
        """Until every receiver has every event; returns how long that took."""
        began = time.monotonic()
        wanted = set(self.event_ids)
        for receiver in receivers.values():
            receiver.wait_for(
                lambda seen: (
                    wanted <= {received.id for received in seen if 200 <= received.answered < 300}
                ),
                max(0.1, began + STORY_TIMEOUT - time.monotonic()),
            )
        took = time.monotonic() - began
        while Delivery.objects.filter(status="pending").exists():
            if time.monotonic() - began > STORY_TIMEOUT:
                break
            time.sleep(0.05)
        return took

    def _conclude(
        self,
        receivers: dict[str, Receiver],
        subscriptions: dict[str, Subscription],
        tripped_after: float | None,
        held: int,
        returned: float,
    ) -> dict[str, Any]:
        wanted = set(self.event_ids)
        accepted = {
            name: {received.id for received in receiver.received if 200 <= received.answered < 300}
            for name, receiver in receivers.items()
        }
        delivered = sum(len(wanted & ids) for ids in accepted.values())
        lost = len(wanted) * len(receivers) - delivered
        forged = sum(
            1
            for receiver in receivers.values()
            for received in receiver.received
            if not received.verified
        )
        twice = sum(
            count - 1
            for receiver in receivers.values()
            for count in Counter(
                received.id for received in receiver.received if 200 <= received.answered < 300
            ).values()
        )
        times = self.latencies.of(self.event_ids)
        quiet = Delivery.objects.filter(subscription=subscriptions["quiet"]).count()
        subscriptions["dead"].refresh_from_db()
        p99 = percentile(times, 0.99)
        figures = {
            "published": len(wanted),
            "deliveries": len(wanted) * len(receivers),
            "delivered": delivered,
            "lost": lost,
            "delivered_twice": twice,
            "bad_signatures": forged,
            "deliveries_of_the_quiet_one": quiet,
            "tripped_after_seconds": tripped_after,
            "held_at_reset": held,
            "seconds_from_reset_to_last_held": returned,
            "healthy_p50_ms": percentile(times, 0.5) * 1000,
            "healthy_p99_ms": p99 * 1000,
            "held": (
                lost == 0
                and forged == 0
                and quiet == 0
                and tripped_after is not None
                and held > 0
                and subscriptions["dead"].state == "active"
                and p99 < HEALTHY_P99
            ),
        }
        self.tell(f"the {held} held deliveries arrived within {returned:.1f} s of the reset")
        self.tell("")
        self.tell(
            f"published {len(wanted)}, delivered {delivered} of {len(wanted) * len(receivers)}, "
            f"lost {lost}"
        )
        return figures
