"""When the last sweep ended: a key in Redis, by the clock of Redis.

Not a row: it is written every few seconds, and after a loss of Redis the next sweep writes it
again.
"""

from __future__ import annotations

import redis

from deliveries.waking.wakeups import client, redis_outage
from subscriptions.conf import conf

# Besides two intervals of the sweep, in seconds.
SWEEP_IS_MISSED = 60.0
_KEY = "webhooks:swept"
_MARK = """
local time = redis.call('TIME')
redis.call('SET', KEYS[1], time[1] + time[2] / 1000000)
"""
_SINCE = """
local at = redis.call('GET', KEYS[1])
if not at then return false end
local time = redis.call('TIME')
return tostring(time[1] + time[2] / 1000000 - at)
"""


def missed_after() -> float:
    """A sweep that ended so many seconds ago, or more, is missed."""
    return SWEEP_IS_MISSED + 2 * conf().sweep_interval


def mark_sweep() -> None:
    """Say that a sweep ended now. An unreachable Redis is none of the sweep's business."""
    try:
        client().eval(_MARK, 1, _KEY)
    except redis.RedisError as error:
        redis_outage.begin(error)


def seconds_since_sweep() -> float | None:
    """Seconds since a sweep ended; None if none ever did. Raises `redis.RedisError`."""
    found = client().eval(_SINCE, 1, _KEY)
    return None if found is None else float(found)
