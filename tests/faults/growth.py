"""What processes and engines have open, and whether that grew."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import redis
from django.conf import settings
from django.db import connection

from tests.faults.installation import Process, open_things

# What may be more at the end: a share of the memory, a few things that come and go.
MEMORY_SHARE, MEMORY, THINGS = 0.05, 8 * 2**20, 3


@dataclass(frozen=True, slots=True)
class Look:
    """What one process, or an engine, has open. A server's memory is not ours: 0."""

    memory: float = 0.0
    threads: float = 0.0
    files: float = 0.0
    connections: float = 0.0


def look(processes: Sequence[Process]) -> dict[str, Look]:
    found = {}
    for one in processes:
        memory, threads, files = open_things(one)
        found[one.program.name] = Look(memory, threads, files)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        found["PostgreSQL"] = Look(connections=cursor.fetchone()[0])
    with redis.Redis.from_url(settings.REDIS_URL) as client:
        found["Valkey"] = Look(connections=client.info("clients")["connected_clients"])
    return found


def middle(looks: Sequence[Look]) -> Look:
    """The median of each number: a moment at which something is being opened decides nothing."""
    return Look(*map(statistics.median, zip(*map(_numbers, looks), strict=True)))


def _numbers(one: Look) -> tuple[float, float, float, float]:
    return (one.memory, one.threads, one.files, one.connections)


def grown(before: Look, after: Look) -> list[str]:
    """What is more than it may be, in words."""
    found = []
    if after.memory > before.memory * (1 + MEMORY_SHARE) + MEMORY:
        found.append(f"{before.memory / 2**20:.0f} → {after.memory / 2**20:.0f} MiB")
    for what in ("threads", "files", "connections"):
        old, new = getattr(before, what), getattr(after, what)
        if new > old + THINGS:
            found.append(f"{old:g} → {new:g} {what}")
    return found


def line(name: str, before: Look, after: Look) -> str:
    cells = [name]
    for what, unit in (("memory", 2**20), ("threads", 1), ("files", 1), ("connections", 1)):
        old, new = getattr(before, what) / unit, getattr(after, what) / unit
        cells.append(f"{old:.0f} → {new:.0f}" if old else "")
    return f"| {' | '.join(cells)} |"
