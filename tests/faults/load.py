"""An application that publishes: at a steady rate, taking note of what was accepted, and when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from django.db import connection

from deliveries import NewEvent, publish, publish_many


@dataclass(frozen=True, slots=True)
class Accepted:
    """An event that `publish` returned. Times are by `time.monotonic()`, in seconds."""

    id: str
    topic: str
    began: float
    returned: float

    @property
    def took(self) -> float:
        return self.returned - self.began


@dataclass(frozen=True, slots=True)
class Refused:
    """A call of `publish` that raised: the application knows that it has to do something."""

    began: float
    took: float
    error: Exception


@dataclass
class Ledger:
    """Everything that was accepted or refused in a test."""

    accepted: list[Accepted] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    def publish(self, topic: str, **payload: object) -> Accepted | None:
        """One event, as a web request would publish it; None if it was refused."""
        began = time.monotonic()
        try:
            event = publish(topic, payload)
        except Exception as error:
            connection.close()  # as at the end of a request: a broken one is not used again
            self.refused.append(Refused(began, time.monotonic() - began, error))
            return None
        accepted = Accepted(event.id, topic, began, time.monotonic())
        self.accepted.append(accepted)
        return accepted

    def publish_many(self, topics: Iterable[str], batch: int = 1000, **payload: object) -> None:
        """Many events at once, in transactions of `batch`. Raises what `publish_many` does."""
        wanted = [
            NewEvent(topic=topic, payload={"n": n, **payload}) for n, topic in enumerate(topics)
        ]
        for start in range(0, len(wanted), batch):
            began = time.monotonic()
            events = publish_many(wanted[start : start + batch])
            now = time.monotonic()
            self.accepted += [Accepted(one.id, one.topic, began, now) for one in events]


class Load:
    """Publishes `rate` events a second from a thread of its own, until the block is over.

    `topic(n)` is the topic of the event number `n`. A call that takes long makes the next ones
    late; what is late by more than a second is left out, like the visitors of a slow site.
    """

    def __init__(self, ledger: Ledger, topic: Callable[[int], str], rate: float) -> None:
        self._ledger = ledger
        self._topic = topic
        self._pause = 1 / rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.first = len(ledger.accepted)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "a call of publish hangs"

    def _run(self) -> None:
        due = time.monotonic()
        number = 0
        try:
            while not self._over.wait(max(0.0, due - time.monotonic())):
                self._ledger.publish(self._topic(number), n=number)
                number += 1
                due = max(due + self._pause, time.monotonic() - 1)
        finally:
            connection.close()


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of `values` does not exceed (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]
