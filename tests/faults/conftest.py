"""The engines of the suite, a world for each test, and the table that it all ends in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import connection

from tests.conftest import CLUSTER
from tests.faults import recorder
from tests.faults.installation import Engine, Installation, Web
from tests.faults.receivers import Receivers
from tests.faults.report import FAILED, HELD, SKIPPED, Row, faults, machine, write
from tests.faults.waiting import eventually
from tests.faults.world import World
from webhooks_project.engines import DATABASE, POSTGRESQL, VALKEY, Cluster

SETTINGS = "tests.faults.settings"
LOG_TAIL = 6000


@dataclass
class Table:
    """What the session ends in. It is complete unless some tests were left out."""

    rows: list[Row] = field(default_factory=list)
    complete: bool = True
    machine: str = ""
    began: float = field(default_factory=time.monotonic)


TABLE = pytest.StashKey[Table]()
ROW = pytest.StashKey[Row]()
WORLD = pytest.StashKey[World]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", help="write the table of faults to this file, if all were tried")
    parser.addoption("--soak", type=float, metavar="MINUTES", help="soak, for so many minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(fault, claim): a line in the table of faults")
    config.stash[TABLE] = Table()
    if config.option.ds != SETTINGS:
        raise pytest.UsageError(
            f"The fault suite breaks its engines; give it its own: --ds={SETTINGS}"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The soak is a command of its own."""
    if collection_path.name == "test_soak.py" and config.getoption("--soak") is None:
        return True
    return None


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[TABLE].complete = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    row = item.stash.get(ROW, None)
    if row is not None and report.failed:
        row.verdict = FAILED
    elif row is not None and report.skipped and isinstance(report.longrepr, tuple):
        row.verdict, row.why = SKIPPED, report.longrepr[2].removeprefix("Skipped: ")
    elif row is not None and call.when == "call":
        row.verdict = HELD
    world = item.stash.get(WORLD, None)
    if world is not None and report.failed:
        for one in world.installation.processes:
            report.sections.append((one.log.name, one.said()[-LOG_TAIL:]))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    for row in table.rows:
        terminalreporter.write_line(row.line())
    path = config.getoption("--report")
    if path and table.complete and table.rows:
        seconds = time.monotonic() - table.began
        write(Path(path), "faults", faults(table.rows, table.machine, seconds))


@pytest.fixture(scope="session")
def cluster(django_db_blocker: Any, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Running engines with a new, migrated database in them."""
    engines = request.config.stash[CLUSTER]
    with Engine(engines, POSTGRESQL).operator() as maintenance:
        maintenance.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
        maintenance.execute(f"CREATE DATABASE {DATABASE}")
    with django_db_blocker.unblock():
        call_command("migrate", interactive=False, verbosity=0)
        request.config.stash[TABLE].machine = machine()
        yield engines
        connection.close()
        connection.close_pool()


@pytest.fixture(scope="session")
def web(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    running = Web(tmp_path_factory.mktemp("web"))
    yield running
    running.end()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Row:
    """The test's line in the table."""
    mark = request.node.get_closest_marker("fault")
    row = Row(*mark.args)
    request.node.stash[ROW] = row
    request.config.stash[TABLE].rows.append(row)
    return row


@pytest.fixture
def world(
    cluster: Cluster,
    web: Web,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[World]:
    """Empty tables, an empty broker, and nothing running yet but the web."""
    _empty(cluster)
    installation = Installation(tmp_path)
    monkeypatch.setenv(recorder.FILE_VARIABLE, str(installation.signals))
    with Receivers() as receivers:
        made = World(installation, Engine(cluster, POSTGRESQL), Engine(cluster, VALKEY), receivers)
        made.configure()
        request.node.stash[WORLD] = made
        yield made
        stuck = installation.end()
    connection.close()
    eventually(web.answers, "the web process answering again")
    assert not stuck, f"not ended by SIGTERM: {stuck}"


_TABLES = (
    "deliveries_attempt, deliveries_delivery, deliveries_event, deliveries_lane, "
    "subscriptions_signingsecret, subscriptions_subscription, subscriptions_tripfuse, "
    "django_celery_beat_periodictask"
)


def _empty(cluster: Cluster) -> None:
    from deliveries.waking import wakeups

    cluster.start()
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {_TABLES} CASCADE")
    with redis.Redis.from_url(django_settings.REDIS_URL) as client:
        client.flushall()
    wakeups.redis_outage.end()
    wakeups.broker_outage.end()
    wakeups.redis_outage._until = wakeups.broker_outage._until = 0.0
