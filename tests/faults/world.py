"""Everything of one test: receivers, subscriptions, what was published, the processes."""

from __future__ import annotations

import os
import time
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from django.conf import settings
from django.db import OperationalError, connection

from subscriptions import circuit
from subscriptions.conf import PREFIX, WebhookSettings
from subscriptions.models import Subscription, create_subscription
from tests.faults.installation import Engine, Installation
from tests.faults.load import Ledger, Load
from tests.faults.receivers import Receivers, Site
from tests.faults.waiting import PATIENCE, holds_within

# What each test starts from; it changes what its fault is about.
DEFAULTS: dict[str, object] = {
    "request_timeout": 2,
    "time_slice": 1,
    "sweep_interval": 1,
    "quick_retries": "0.1,0.2,0.4",
}


@dataclass
class World:
    """What a test breaks, and what it looks at afterwards.

    `lanes` are the subscriptions by name, with the topics that each must get. `bumped` counts
    the circuit epochs that the test itself began: by a new secret, another URL, a resume.
    """

    installation: Installation
    postgresql: Engine
    valkey: Engine
    receivers: Receivers
    ledger: Ledger = field(default_factory=Ledger)
    lanes: dict[str, Lane] = field(default_factory=dict)

    def configure(self, **changed: object) -> None:
        """The settings of what is started from now on, and of this process: no prefix, as text."""
        values = self.installation.settings = {**DEFAULTS, **self.installation.settings, **changed}
        inherited = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
        settings.WEBHOOKS = WebhookSettings.from_env(
            inherited | {PREFIX + name.upper(): str(value) for name, value in values.items()}
        )

    def subscribe(
        self,
        where: Site | str,
        topics: Iterable[str],
        *,
        name: str | None = None,
        **fields: Any,
    ) -> Subscription:
        """An active subscription to these topics, without wildcards."""
        topics = list(topics)
        name = name or f"lane-{len(self.lanes)}"
        subscription, _ = create_subscription(
            name=name,
            url=where if isinstance(where, str) else where.url,
            topic_patterns=topics,
            headers={"X-Lane": name},
            **fields,
        )
        self.lanes[name] = Lane(subscription.pk, name, frozenset(topics))
        return subscription

    def load(self, rate: float, topics: Iterable[str]) -> Load:
        """Publish to these topics in turn."""
        names = list(topics)
        return Load(self.ledger, lambda n: names[n % len(names)], rate)

    def pause_all(self) -> None:
        circuit.pause([lane.id for lane in self.lanes.values()])

    def wanted(self) -> set[tuple[str, str]]:
        """Every (lane, event id) that has to arrive."""
        lanes: dict[str, list[str]] = {}
        for lane in self.lanes.values():
            for topic in lane.topics:
                lanes.setdefault(topic, []).append(lane.name)
        return {(lane, one.id) for one in self.ledger.accepted for lane in lanes.get(one.topic, ())}

    def wanted_of(self, *names: str) -> set[tuple[str, str]]:
        """Those of these lanes."""
        return {key for key in self.wanted() if key[0] in names}

    def wait_until_settled(self, timeout: float = PATIENCE) -> float:
        """Until nothing is due and nobody sends; returns the seconds."""
        began = time.monotonic()
        if not holds_within(self.settled, timeout):
            due, leased, lanes = self.open_rows()
            pytest.fail(
                f"after {timeout:g} s {due} deliveries are due, {leased} and {lanes} lanes leased"
            )
        return time.monotonic() - began

    def settled(self) -> bool:
        try:
            return self.open_rows() == (0, 0, 0)
        except OperationalError:  # this process's connection was cut like all others
            connection.close()
            return False

    def open_rows(self) -> tuple[int, int, int]:
        """Deliveries that are due within 5 s, deliveries that are leased, lanes that are.

        A lease that is over is nobody's; a delivery under one is due all the same. So is one that
        is held although its subscription is active: its event was being published while the
        circuit was reset, and the next sweep releases it.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                SELECT count(*) FILTER (
                        WHERE status = 'pending' AND next_attempt_at < now() + interval '5 s'
                            OR status = 'held' AND coalesce((
                                SELECT s.enabled FROM subscriptions_subscription s
                                WHERE s.id = subscription_id
                            ), true)
                    ),
                    count(*) FILTER (WHERE lease_until > now()),
                    (SELECT count(*) FROM deliveries_lane WHERE lease_until > now())
                FROM deliveries_delivery
                """
            )
            row = cursor.fetchone()
        return (row[0], row[1], row[2])

    def statuses(self, name: str | None = None) -> dict[str, int]:
        """How many deliveries there are in each status, of one lane or of all."""
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT status, count(*) FROM deliveries_delivery "
                "WHERE %(id)s::uuid IS NULL OR subscription_id = %(id)s GROUP BY status",
                {"id": self.lanes[name].id if name else None},
            )
            return dict(cursor.fetchall())

    def states(self, names: Sequence[str]) -> dict[str, int]:
        """How many of these lanes are active, paused, tripped."""
        found = Subscription.objects.filter(pk__in=[self.lanes[name].id for name in names])
        return dict(Counter(one.state for one in found))

    def attempts_by_outcome(self, names: Sequence[str]) -> dict[str, int]:
        """How many attempts of these lanes there are with each outcome."""
        return dict(Counter(outcome for outcome, _ in self._attempts(names)))

    def durations(self, names: Sequence[str]) -> list[float]:
        """Seconds that each attempt of these lanes took."""
        return [seconds for _, seconds in self._attempts(names)]

    def _attempts(self, names: Sequence[str]) -> list[tuple[str, float]]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT a.outcome, a.duration_ms / 1000.0::float8 FROM deliveries_attempt a "
                "JOIN deliveries_delivery d ON d.id = a.delivery_id "
                "WHERE d.subscription_id = ANY(%s::uuid[])",
                [[self.lanes[name].id for name in names]],
            )
            return cursor.fetchall()

    def attempts(self) -> int:
        """How many attempts are written down."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM deliveries_attempt")
            return int(cursor.fetchone()[0])

    def waits_after(self, faults: Sequence[float] = ()) -> list[float]:
        """For each delivery that arrived, how long that took: since its event was published, or
        since the last fault before it came, if that was later. Seconds.
        """
        published = {one.id: one.returned for one in self.ledger.accepted}
        first: dict[tuple[str, str], float] = {}
        for one in self.receivers.requests:
            if 200 <= one.status < 300 and one.id in published:
                first.setdefault((one.lane, one.id), one.at)
        return [
            at - max([published[event_id], *faults[: bisect(faults, at)][-1:]])
            for (_, event_id), at in first.items()
        ]

    def signals(self) -> list[tuple[str, UUID]]:
        """The signals that any process of the installation sent: (`tripped` or `reset`, id)."""
        return [(words[0], UUID(words[1])) for words in self._signals() if len(words) == 2]

    def fuse_signals(self) -> list[str]:
        """`blown` and `reset`, as any process of the installation said."""
        return [words[0] for words in self._signals() if len(words) == 1]

    def _signals(self) -> list[list[str]]:
        return [line.split() for line in self.installation.signals.read_text().splitlines()]

    def gaps(self, name: str) -> list[float]:
        """Seconds between two requests of the same delivery of a lane, for each such two."""
        came: dict[str, list[float]] = {}
        for one in self.receivers.requests:
            if one.lane == name:
                came.setdefault(one.id, []).append(one.at)
        return [later - at for times in came.values() for at, later in pairwise(times)]


@dataclass
class Lane:
    """A subscription as a test knows it: `bumped` counts the epochs that the test began."""

    id: UUID
    name: str
    topics: frozenset[str]
    bumped: int = 0
