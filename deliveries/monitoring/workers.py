"""Which workers there are: each says so itself, every few seconds, in Redis.

A worker that ends says that it is gone; one that was killed is forgotten after `FORGOTTEN`
seconds. Not a row: it is written all the time, and after a loss of Redis each worker says it again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from typing import NamedTuple

import redis

from deliveries.waking.wakeups import client, redis_outage

# How often a worker says that it is there, and when one that says nothing is gone, in seconds.
INTERVAL = 5.0
FORGOTTEN = 20.0

_KEY = "webhooks:workers"
# By the clock of Redis.
_MARK = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] - ARGV[2])
"""
_SEEN = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local found = redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[1], '+inf', 'WITHSCORES')
for number = 2, #found, 2 do found[number] = tostring(now - found[number]) end
return found
"""


class Worker(NamedTuple):
    """`name`: the node's, as Celery shows it. `seconds_ago`: when it said so last."""

    name: str
    pid: int
    queues: tuple[str, ...]
    seconds_ago: float


def seen() -> list[Worker]:
    """The workers of the last `FORGOTTEN` seconds, by name. Raises `redis.RedisError`."""
    found = client().eval(_SEEN, 1, _KEY, FORGOTTEN)
    return sorted(
        Worker(name, pid, tuple(queues), max(0.0, float(seconds_ago)))
        for member, seconds_ago in zip(found[::2], found[1::2], strict=True)
        for name, pid, queues in [json.loads(member)]
    )


class Presence:
    """Says that this worker is there, by a thread of its own, until `end`."""

    def __init__(self, name: str, queues: Iterable[str]) -> None:
        self._member = json.dumps([name, os.getpid(), sorted(queues)])
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="say it is there", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                client().eval(_MARK, 1, _KEY, self._member, FORGOTTEN)
            except redis.RedisError as error:
                redis_outage.begin(error)
            if self._ending.wait(INTERVAL):
                return

    def end(self) -> None:
        """Say that it is gone."""
        self._ending.set()
        self._thread.join()
        try:
            client().zrem(_KEY, self._member)
        except redis.RedisError as error:
            redis_outage.begin(error)
