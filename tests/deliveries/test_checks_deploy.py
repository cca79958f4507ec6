"""`check --deploy`: what is fit for development alone, and who is missing."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
import redis
from django.core.checks import CheckMessage, run_checks
from django.db import OperationalError, connection

from deliveries import checks
from deliveries.monitoring.workers import Worker

pytestmark = pytest.mark.django_db

ALL = Worker("w@h", 1, ("deliver", "recover", "maintenance"), 1.0)


@pytest.fixture(autouse=True)
def there(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """All is well, but for what a test changes."""
    settings.KEYS_OF_THE_CHECKOUT = []
    monkeypatch.setattr(checks, "seconds_since_sweep", lambda: 3.0)
    monkeypatch.setattr(checks.workers, "seen", lambda: [ALL])


def found() -> dict[str, CheckMessage]:
    said = run_checks(tags=["webhooks"], include_deployment_checks=True)
    assert all(one.hint for one in said)
    return {str(one.id): one for one in said if str(one.id) >= "webhooks.W1"}


def test_nothing_is_said_where_all_is_well(configure: Callable[..., None]) -> None:
    configure(allowed_networks=())
    assert found() == {}
    assert not [one for one in run_checks(tags=["webhooks"]) if str(one.id) >= "webhooks.W1"]


def test_what_is_fit_for_development_alone(configure: Callable[..., None], settings: Any) -> None:
    settings.DEBUG = True
    settings.KEYS_OF_THE_CHECKOUT = ["WEBHOOKS_SECRET_KEYS"]
    networks = ("10.0.0.0/8", "8.8.8.0/24")
    configure(
        allowed_networks=tuple(map(ipaddress.ip_network, networks)),
        slow_retries=(86400.0 * 5,),
        keep_failed_days=1,
        hold_days=30,
    )
    said = found()
    assert set(said) == {"webhooks.W101", "webhooks.W102", "webhooks.W103", "webhooks.W104"}
    assert "10.0.0.0/8" in said["webhooks.W102"].msg
    assert "8.8.8.0/24" not in said["webhooks.W102"].msg
    assert "6.0 days" in said["webhooks.W103"].msg
    assert "KEEP_FAILED_DAYS" in said["webhooks.W103"].msg


def test_who_is_missing(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    configure(allowed_networks=())
    monkeypatch.setattr(checks, "seconds_since_sweep", lambda: 71.0)
    monkeypatch.setattr(checks.workers, "seen", lambda: [ALL._replace(queues=("deliver",))])
    said = run_checks(tags=["webhooks"], include_deployment_checks=True)
    assert [one.id for one in said] == ["webhooks.W112", "webhooks.W113", "webhooks.W113"]
    assert "71 s ago" in said[0].msg
    assert ["'recover'" in said[1].msg, "'maintenance'" in said[2].msg] == [True, True]


def test_no_sweep_is_missed_before_its_time(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(allowed_networks=(), sweep_interval=120)
    monkeypatch.setattr(checks, "seconds_since_sweep", lambda: 200.0)
    assert found() == {}


def test_a_redis_that_is_too_old_is_named(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(allowed_networks=())
    monkeypatch.setattr("redis.Redis.info", lambda *_: {"redis_version": "6.2.14"})
    said = found()
    assert set(said) == {"webhooks.W114"}
    assert "6.2.14" in said["webhooks.W114"].msg


def test_redis_and_the_database_away_are_said_and_nothing_else(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(allowed_networks=())

    def away(*_: Any) -> Any:
        raise redis.ConnectionError("refused")

    def no_database(*_: Any, **__: Any) -> Any:
        raise OperationalError("the database is away")

    monkeypatch.setattr(checks, "seconds_since_sweep", away)
    monkeypatch.setattr(connection, "cursor", no_database)
    said = found()
    assert set(said) == {"webhooks.W110", "webhooks.W111"}
    assert "away" in said["webhooks.W110"].msg
    assert "refused" in said["webhooks.W111"].msg
