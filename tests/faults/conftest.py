"""The engines of the suite, a world for each test, and the table that it all ends in."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
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
from webhooks_project.engines import (
    CHECKOUT,
    DATABASE,
    POSTGRESQL,
    VALKEY,
    Cluster,
    local_dir,
)

SETTINGS = "tests.faults.settings"
LOG_TAIL = 6000


@dataclass
class Table:
    """What the session ends in: the rows of all its processes, by the place of their tests."""

    rows: dict[tuple[str, int, str], Row] = field(default_factory=dict)
    machine: str = ""
    began: float = field(default_factory=time.monotonic)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == ROW_PROPERTY:
                file, line, _ = report.location
                self.rows[file, line or 0, report.nodeid] = Row(**value["row"])
                self.machine = value["machine"]


TABLE = pytest.StashKey[Table]()
MACHINE = pytest.StashKey[str]()
ROW_PROPERTY = "row of the table of faults"
# A test takes part in it; one that is `alone` has it for itself.
MACHINE_LOCK = CHECKOUT / ".local" / "faults-machine.lock"
ROW = pytest.StashKey[Row]()
WORLD = pytest.StashKey[World]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--report", help="write the table of faults to this file, if all were tried")
    parser.addoption("--soak", type=float, metavar="MINUTES", help="soak, for so many minutes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(fault, claim): a line in the table of faults")
    config.addinivalue_line("markers", "alone: measures milliseconds, so nothing runs beside it")
    config.stash[TABLE] = Table()
    config.pluginmanager.register(config.stash[TABLE], "table of faults")
    if config.option.ds != SETTINGS:
        raise pytest.UsageError(
            f"The fault suite breaks its engines; give it its own: --ds={SETTINGS}"
        )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The soak is a command of its own."""
    if collection_path.name == "test_soak.py" and config.getoption("--soak") is None:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes, those that are alone would keep the others waiting."""
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    alone = item.get_closest_marker("alone") is not None
    MACHINE_LOCK.parent.mkdir(exist_ok=True)
    with MACHINE_LOCK.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return (yield)


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
    if row is not None and call.when == "teardown":
        value = {"row": asdict(row), "machine": item.config.stash.get(MACHINE, "")}
        report.user_properties.append((ROW_PROPERTY, value))
    world = item.stash.get(WORLD, None)
    if world is not None and report.failed:
        for one in world.installation.processes:
            report.sections.append((one.log.name, one.said()[-LOG_TAIL:]))
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    table = config.stash[TABLE]
    rows = [row for _, row in sorted(table.rows.items())]
    for row in rows:
        terminalreporter.write_line(row.line())
    path = config.getoption("--report")
    some = any(config.getoption(name) for name in ("keyword", "markexpr", "deselect", "maxfail"))
    if path and rows and not some:
        seconds = time.monotonic() - table.began
        write(Path(path), "faults", faults(rows, table.machine, seconds))


@pytest.fixture(scope="session")
def cluster(django_db_blocker: Any, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Running engines with a new, migrated database in them; each process has its own."""
    engines = request.config.stash.get(CLUSTER, None)
    with ExitStack() as running:
        if engines is None:
            engines = running.enter_context(Cluster(local_dir()))
            engines.start()
        with Engine(engines, POSTGRESQL).operator() as maintenance:
            maintenance.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            maintenance.execute(f"CREATE DATABASE {DATABASE}")
        with django_db_blocker.unblock():
            call_command("migrate", interactive=False, verbosity=0)
            request.config.stash[MACHINE] = machine()
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
    "django_celery_beat_periodictask, api_apikey"
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
