"""The topic index alone: `python matching.py`, then `{"size": N}` on its standard input.

Answers, for an index of N subscriptions, with the seconds to build it, the median seconds to
match one topic, and the bytes that it takes.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
import tracemalloc
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from measuring import percentile

from subscriptions.topics import PatternTrie

TOPICS = 5000
# Topics matched between two looks at the clock.
TOGETHER = 10


def patterns(number: int) -> list[str]:
    """What subscription `number` wants: mostly one customer's events, as it is in life."""
    kind = number % 10
    if kind < 4:
        return [f"customer.{number}.>"]
    if kind < 7:
        return [f"customer.{number}.order.*", f"customer.{number}.invoice.paid"]
    if kind < 9:
        return [f"customer.{number}.order.created"]
    return [f"customer.*.order.cancelled.region-{number}", f"region-{number}.>"]


def build(size: int) -> PatternTrie[UUID]:
    trie: PatternTrie[UUID] = PatternTrie()
    for number in range(size):
        for pattern in patterns(number):
            trie.add(pattern, UUID(int=number))
    return trie


def measure(size: int) -> dict[str, float]:
    gc.collect()
    tracemalloc.start()
    trie = build(size)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del trie
    began = time.perf_counter()
    trie = build(size)
    took = time.perf_counter() - began
    draw = random.Random(size)
    times = []
    for _ in range(TOPICS // TOGETHER):
        topics = [f"customer.{draw.randrange(size)}.order.created" for _ in range(TOGETHER)]
        before = time.perf_counter()
        for topic in topics:
            trie.match(topic)
        times.append((time.perf_counter() - before) / TOGETHER)
    return {"build": took, "match": percentile(times, 50), "bytes": used}


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        print(json.dumps(measure(json.loads(line)["size"])), flush=True)


if __name__ == "__main__":
    main()
