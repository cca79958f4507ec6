"""What the index of topic patterns costs, by itself."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import psycopg
from measuring import percentile

from subscriptions.topics.rules import candidates

TOPICS = 2000

# As `deliveries_publish` asks, and with its settings.
_MATCH = (
    "SELECT id FROM subscriptions_subscription WHERE "
    'subscriptions_topic_keys(tenant, all_tenants, topic_patterns) COLLATE "C" && %s::text[]'
)


@dataclass(frozen=True)
class Matching:
    """The median time of one look-up with its round trip, and of making the index, in seconds."""

    match: float
    build: float
    index_bytes: int


def measure(connection: psycopg.Connection[Any], topic: str, subscriptions: int) -> Matching:
    """Match topics of one subscription each: `topic` with its number for `{n}`."""
    began = time.perf_counter()
    connection.execute("REINDEX INDEX subscription_topic_keys")
    build = time.perf_counter() - began
    row = connection.execute("SELECT pg_relation_size('subscription_topic_keys')").fetchone()
    connection.execute("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan")
    draw = random.Random(subscriptions)
    times = []
    for _ in range(TOPICS):
        before = time.perf_counter()
        patterns = candidates(topic.format(n=draw.randrange(subscriptions)))
        found = connection.execute(_MATCH, [patterns], prepare=True).fetchall()
        times.append(time.perf_counter() - before)
        if len(found) != 1:
            raise RuntimeError(f"{topic} matches {len(found)} subscriptions, not one")
    return Matching(percentile(times, 50), build, row[0] if row else 0)
