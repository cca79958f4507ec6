from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from api import throttle
from tests.conftest import empty_redis


@pytest.fixture
def no_buckets() -> Iterator[redis.Redis]:
    """A Redis that is there, and nothing in it nor in this process's own count."""
    throttle._buckets.clear()
    throttle._outage._until = 0.0
    with empty_redis() as client:
        yield client
    empty_redis().close()
    throttle._buckets.clear()
    throttle._outage._until = 0.0


@pytest.fixture
def nobody_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is published or sent again goes to no broker."""
    for module in ("publishing.publish", "keeping.replay", "holding"):
        monkeypatch.setattr(f"deliveries.{module}.wake", lambda *_, **__: None)
