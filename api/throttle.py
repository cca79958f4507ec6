"""How many requests a second one key may send: 429 beyond that.

A leaky bucket (GCRA) for each key, which holds one second's worth of requests. What all processes
let through stands in Redis. A process counts on its own for 50 ms, or a twentieth of the bucket,
before it adds its count there and reads what the others have added, in one round trip. So a busy
key costs twenty calls a second for each process, not one for each request. The bucket can be
overfilled by that twentieth for each process, at most, and leaks as fast as ever: what is let
through beyond it is let through once, not each second. While Redis is away each counts alone.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import redis

from api.problems import Problem
from deliveries.waking.wakeups import Outage, client
from subscriptions.conf import conf

SYNC_SECONDS = 0.05
MAX_KEYS = 10_000

# The key holds when the bucket will be empty, in microseconds of Redis's clock. ARGV: how many
# requests to add, the microseconds of one, how many microseconds the bucket holds. If they are too
# many, the last one is refused and not added. Returns how full the bucket is, or would be.
_ADD = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local fill = math.max((tonumber(redis.call('GET', KEYS[1])) or now) - now, 0) + ARGV[1] * ARGV[2]
local kept = fill
if fill > tonumber(ARGV[3]) then kept = math.max(fill - ARGV[2], 0) end
redis.call('SET', KEYS[1], string.format('%.0f', now + kept), 'PX', 1 + math.ceil(kept / 1000))
return math.ceil(fill)
"""


@dataclass(slots=True)
class _Bucket:
    """What this process knows of a key's bucket. Times are of `time.monotonic`."""

    empty_at: float = 0.0
    unsent: int = 0
    synced_at: float = -math.inf


_buckets: dict[int, _Bucket] = {}
_lock = threading.Lock()
# Not that of the wake-ups: what goes wrong here must not keep them from Redis.
_outage = Outage("Redis (requests of keys)", "each process counts them alone")


def count(key_id: int) -> None:
    """Count a request of this key. Raises `Problem` (429) if it is one too many."""
    rate = conf().api_rate_limit
    if not rate:
        return
    one = 1 / rate
    capacity = max(1.0, one)
    now = time.monotonic()
    with _lock:
        if len(_buckets) >= MAX_KEYS:
            _buckets.clear()
        bucket = _buckets.setdefault(key_id, _Bucket())
        fill = max(bucket.empty_at - now, 0) + one
        is_full = fill > capacity
        if not is_full:
            bucket.empty_at = now + fill
            bucket.unsent += 1
        unsent = bucket.unsent
        is_due = now - bucket.synced_at >= SYNC_SECONDS or unsent * one >= SYNC_SECONDS
        # The script may refuse the last request that it counts, so that must be this one.
        if is_due := is_due and not is_full and not _outage.lasting():
            bucket.unsent, bucket.synced_at = 0, now
    if is_due and (shared := _shared(key_id, unsent, one, capacity)) is not None:
        fill = shared
        is_full = fill > capacity
        with _lock:
            bucket.empty_at = now + fill + (bucket.unsent - is_full) * one
    if is_full:
        _refuse(rate, fill - capacity)


def _refuse(rate: float, wait: float) -> None:
    seconds = max(1, math.ceil(wait))
    raise Problem(
        429,
        "throttled",
        "The key asks too often",
        f"A key may send {rate:,} requests a second; ask again in {seconds} s. Many events fit "
        "into one request: POST /api/v1/events/batch.",
        headers={"Retry-After": str(seconds)},
    )


@cache
def _script() -> Any:
    return client().register_script(_ADD)


def _shared(key_id: int, requests: int, one: float, capacity: float) -> float | None:
    """How full the bucket of all processes is with these requests more, in seconds."""
    name = f"webhooks:api:{key_id}"
    microseconds = round(one * 1e6), round(capacity * 1e6)
    try:
        fill = _script()([name], [requests, *microseconds], client=client())
    except redis.RedisError as error:
        _outage.begin(error)
        return None
    _outage.end()
    return float(fill) / 1e6
