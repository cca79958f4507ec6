"""Which workers are seen."""

from __future__ import annotations

import pytest
import redis

from deliveries.monitoring import workers
from deliveries.monitoring.workers import Presence, seen
from tests.end_to_end.conftest import eventually


def test_a_worker_is_seen_until_it_ends(fresh: redis.Redis) -> None:
    assert seen() == []
    presence = Presence("one@here", ["recover", "deliver"])
    eventually(lambda: [one.queues for one in seen()] == [("deliver", "recover")], "being seen")
    assert seen()[0].name == "one@here"
    assert 0 <= seen()[0].seconds_ago < workers.FORGOTTEN
    presence.end()
    assert seen() == []


def test_a_worker_that_says_nothing_any_more_is_forgotten(
    fresh: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    presence = Presence("one@here", ["deliver"])
    eventually(seen, "being seen")
    monkeypatch.setattr(workers, "FORGOTTEN", -1.0)
    assert seen() == []
    presence.end()


def test_a_worker_is_seen_again_after_a_loss_of_redis(
    fresh: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "INTERVAL", 0.02)
    presence = Presence("one@here", ["deliver"])
    eventually(seen, "being seen")
    workers.client().flushdb()
    eventually(seen, "being seen again")
    presence.end()
