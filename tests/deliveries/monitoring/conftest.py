"""What the tests of metrics share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from deliveries.monitoring import metrics, readiness
from deliveries.waking import wakeups
from tests.conftest import empty_redis

TOKEN = "a-token-for-tests"
Samples = dict[tuple[str, tuple[str, ...]], float]
Scrape = Callable[[], Samples]


@pytest.fixture
def fresh() -> Iterator[redis.Redis]:
    """Empty Redis databases, and nothing that was asked before."""
    readiness._kept.forget()
    metrics._kept.forget()
    wakeups.redis_outage.end()
    with empty_redis() as client:
        yield client
    readiness._kept.forget()
    metrics._kept.forget()
    wakeups.redis_outage.end()


@pytest.fixture
def scrape(client: Any, configure: Callable[..., None], fresh: redis.Redis) -> Scrape:
    """The page as it is now: values by the name and the values of the labels."""
    configure(metrics_token=TOKEN)

    def ask() -> Samples:
        metrics._kept.forget()
        response = client.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        assert response.status_code == 200, response.content
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(response.content.decode())
            for sample in family.samples
        }

    return ask
