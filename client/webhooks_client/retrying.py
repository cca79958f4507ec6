"""When a request is sent again: pure, without a socket, a clock or a sleep.

`attempts` yields what is to be done, a `Request` to send or a `Pause` to make, and is told what
came of it; the two clients do it, each in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import httpx

from webhooks_client.errors import retry_after

# Seconds before the first retry; doubled with each, up to the second figure.
FIRST_DELAY = 0.5
MAX_DELAY = 16.0

# The connection was never made, so the server has seen nothing.
_NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class Request:
    """An HTTP request, ready to be sent any number of times.

    `repeatable`: to send it twice is the same as to send it once.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    content: bytes | None = None
    repeatable: bool = False


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Retries:
    """How often and for how long.

    `count`: retries after the first request, at most. `total`: seconds after the beginning of the
    first request, beyond which no other begins.
    """

    count: int = 5
    total: float = 60.0


Reply = httpx.Response | httpx.RequestError
Attempts = Generator[Request | Pause, Reply | None, Reply]


def backoff(retry: int, random: float) -> float:
    """Seconds before a retry, counted from 0; `random` from 0 up to 1 spreads it over the upper
    half of the delay, so that those who failed together do not come back together."""
    return min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(retry, 30)) * (0.5 + random / 2)


def pause_before_retry(
    request: Request, reply: Reply, retry: int, elapsed: float, retries: Retries, random: float
) -> float | None:
    """Seconds until `request` is sent again, or None if this reply is the end of it.

    `retry`: how many there were. `elapsed`: seconds since the first request. Answers 429 and 503
    are waited for as long as their `Retry-After` says, if it ends within the total.
    """
    if retry >= retries.count or not _worth_a_retry(request, reply):
        return None
    seconds = backoff(retry, random)
    if isinstance(reply, httpx.Response):
        seconds += retry_after(reply) or 0.0
    return seconds if elapsed + seconds <= retries.total else None


def _worth_a_retry(request: Request, reply: Reply) -> bool:
    if isinstance(reply, httpx.Response):
        if reply.status_code == 429:
            return True
        return request.repeatable and (reply.status_code == 408 or reply.status_code >= 500)
    if isinstance(reply, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    return request.repeatable or isinstance(reply, _NOTHING_SENT)


def attempts(
    request: Request, retries: Retries, *, clock: Callable[[], float], random: Callable[[], float]
) -> Attempts:
    """Send `request`, again where that helps and can do no harm; returns the last reply."""
    began = clock()
    retry = 0
    while True:
        reply = yield request
        assert reply is not None
        seconds = pause_before_retry(request, reply, retry, clock() - began, retries, random())
        if seconds is None:
            return reply
        yield Pause(seconds)
        retry += 1
