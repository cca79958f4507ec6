"""The embedded engines: plain children, whose data outlive them, and a `kill -9` of anything."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from tests.webhooks_project.waiting import alive, eventually
from webhooks_project import engines
from webhooks_project.child import as_child
from webhooks_project.engines import (
    CHECKOUT,
    ENGINES,
    POSTGRESQL,
    VALKEY,
    Cluster,
    EngineError,
    Layout,
)

HOLDER = """
import sys
from webhooks_project.engines import Cluster, EngineError
try:
    with Cluster(sys.argv[1]) as cluster:
        cluster.start()
        print(cluster.pid("postgresql"), cluster.pid("valkey"), flush=True)
        sys.stdin.read()
except EngineError as error:
    print(error, flush=True)
"""
NOBODY = 65534
Hold = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "local"


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Another process that runs the engines of a directory until its stdin is closed."""
    started = []

    def start(directory: Path, **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=CHECKOUT,
            **options,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.communicate(timeout=30)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def query(cluster: Cluster, sql: str) -> list[Any]:
    with psycopg.connect(cluster.layout.database_url) as connection:
        cursor = connection.execute(sql)  # type: ignore[call-overload]
        return list(cursor.fetchall()) if cursor.description else []


def store(cluster: Cluster) -> None:
    query(cluster, "CREATE TABLE kept AS SELECT 7 AS seven")
    with redis.Redis.from_url(cluster.layout.redis_url()) as client:
        client.set("kept", 7)


def assert_stored(cluster: Cluster) -> None:
    assert query(cluster, "SELECT seven FROM kept") == [(7,)]
    with redis.Redis.from_url(cluster.layout.redis_url()) as client:
        assert client.get("kept") == b"7"


def test_they_end_with_the_block_and_their_data_are_there_the_next_time(place: Path) -> None:
    with Cluster(place) as cluster:
        cluster.start()
        pids = [cluster.pid(name) for name in ENGINES]
        store(cluster)
        cluster.start()
        assert [cluster.pid(name) for name in ENGINES] == pids, "what runs is left alone"
    assert not [pid for pid in pids if pid and alive(pid)]
    with Cluster(place) as again:
        again.start()
        assert_stored(again)


def test_nothing_is_opened_on_a_network(place: Path) -> None:
    with Cluster(place) as cluster:
        cluster.start()
        assert query(cluster, "SHOW listen_addresses") == [("",)]
        with redis.Redis.from_url(cluster.layout.redis_url()) as client:
            assert client.config_get("port") == {"port": "0"}
        assert cluster.layout.run.stat().st_mode & 0o077 == 0


def test_a_second_process_is_refused_with_a_sentence(place: Path, hold: Hold) -> None:
    first = hold(place)
    assert len(said(first).split()) == 2
    with pytest.raises(EngineError, match=f"in use by process {first.pid}"), Cluster(place):
        pass


def test_engines_of_a_killed_process_end_and_the_next_start_waits_for_that(
    place: Path, hold: Hold
) -> None:
    first = hold(place)
    pids = [int(pid) for pid in said(first).split()]
    first.kill()
    with Cluster(place) as cluster:
        cluster.start()
        assert not [pid for pid in pids if alive(pid)]
        store(cluster)
        assert_stored(cluster)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_engine_is_revived_with_its_data(
    place: Path, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.cluster, "REVIVE_SECONDS", 0)
    with Cluster(place) as cluster:
        cluster.start()
        store(cluster)
        pid = cluster.pid(engine)
        assert pid is not None
        assert cluster.revive() == []
        os.kill(pid, signal.SIGKILL)
        # Until PostgreSQL's own children are gone too, it says so and tries again.
        eventually(lambda: f"{engine} ended with status -9; started again" in cluster.revive())
        cluster.start()
        assert cluster.pid(engine) != pid
        assert_stored(cluster)


def test_a_pid_file_that_names_a_stranger_is_not_believed(place: Path, hold: Hold) -> None:
    first = hold(place)
    postgresql, valkey = (int(pid) for pid in said(first).split())
    for pid in (first.pid, postgresql, valkey):
        os.kill(pid, signal.SIGKILL)
    first.wait()
    file = place / POSTGRESQL / "postmaster.pid"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    with Cluster(place) as cluster:
        cluster.start()
        assert query(cluster, "SELECT 1") == [(1,)]


def test_an_initdb_that_was_cut_short_is_done_again(place: Path) -> None:
    (place / "postgresql.new" / "base").mkdir(parents=True)
    with Cluster(place, [POSTGRESQL]) as cluster:
        cluster.start()
        assert query(cluster, "SELECT 1") == [(1,)]
    assert not (place / "postgresql.new").exists()


def test_a_data_directory_of_another_version_is_left_alone(place: Path) -> None:
    with Cluster(place, [POSTGRESQL]) as cluster:
        cluster.start()
        cluster.stop()
        version = place / POSTGRESQL / "PG_VERSION"
        version.write_text("17\n")
        with pytest.raises(EngineError, match="initialized by PostgreSQL version 17"):
            cluster.start()
        assert version.read_text() == "17\n"


@pytest.mark.parametrize("name", ["with a blank", "ünïcödé, and 'quotes\"", "x" * 120])
def test_any_path_will_do(tmp_path: Path, name: str) -> None:
    with Cluster(tmp_path / name) as cluster:
        cluster.start()
        store(cluster)
        assert_stored(cluster)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can close a directory to itself")
def test_root_runs_them_below_a_closed_directory_and_keeps_its_files(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with Cluster(closed / "local", [POSTGRESQL]) as cluster:
        cluster.start()
        pid = cluster.pid(POSTGRESQL)
        assert "Uid:\t0\t" not in Path(f"/proc/{pid}/status").read_text()
    # Data that root made, or copied, are given away once.
    for path in [closed / "local" / POSTGRESQL, *(closed / "local" / POSTGRESQL).rglob("*")]:
        os.chown(path, 0, 0)
    with Cluster(closed / "local", [POSTGRESQL]) as cluster:
        cluster.start()
        assert query(cluster, "SELECT 1") == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_runs_them_as_itself_and_root_leaves_them_alone(place: Path) -> None:
    place.mkdir()
    os.chown(place, NOBODY, -1)
    done = subprocess.run(
        # It can still read our Python, which may be in a closed /root.
        as_child([sys.executable, "-c", HOLDER, str(place)], signal.SIGKILL, NOBODY),
        input="",
        capture_output=True,
        text=True,
        cwd=CHECKOUT,
    )
    assert len(done.stdout.split()) == 2, done.stdout + done.stderr
    assert (place / POSTGRESQL).stat().st_uid == NOBODY
    with pytest.raises(EngineError, match=f"belongs to user {NOBODY}"), Cluster(place):
        pass


def test_a_socket_directory_that_others_can_enter_is_refused(place: Path) -> None:
    run = Layout.of(place).run
    run.mkdir(parents=True)
    run.chmod(0o777)
    with pytest.raises(EngineError, match="open to other users"), Cluster(place):
        pass
    run.rmdir()


def test_sockets_are_beside_the_data_unless_the_path_is_long_or_strange() -> None:
    assert Layout.of("/srv/app/.local").run == Path("/srv/app/.local/run")
    for strange in ("/srv/" + "x" * 90, "/srv/a b", "/srv/a,b"):
        run = str(Layout.of(strange).run)
        assert run.startswith("/tmp/webhooks-")
        assert len(f"{run}/.s.PGSQL.5432.lock") <= 103


def test_engines_that_the_environment_names_are_not_embedded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"):
        monkeypatch.setenv(name, "")
    assert engines.embedded().engines == (POSTGRESQL, VALKEY)
    monkeypatch.setenv("DATABASE_URL", "postgresql://somebody@db.test/x")
    monkeypatch.setenv("REDIS_URL", "redis://flags.test/1")
    assert engines.embedded().engines == ()
    assert engines.database_params()["HOST"] == "db.test"
    assert engines.redis_url() == engines.broker_url() == "redis://flags.test/1"


@pytest.mark.parametrize(
    "words",
    [
        ["manage.py", "subscriptions"],
        ["manage.py", "createsuperuser", "--noinput", "--username", "a", "--email", "a@b.test"],
        ["-m", "celery", "-A", "webhooks_project", "worker", "--pool", "threads"],
        ["-m", "celery", "-A", "webhooks_project", "beat"],
    ],
    ids=["command", "django", "worker", "beat"],
)
def test_what_finds_nothing_running_says_so_in_one_sentence(place: Path, words: list[str]) -> None:
    done = run_in(place, words)
    assert done.returncode != 0
    assert engines.NOT_RUNNING in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["check", "help"])
def test_a_command_that_does_not_connect_needs_nothing(place: Path, command: str) -> None:
    done = run_in(place, ["manage.py", command])
    assert done.returncode == 0, done.stderr
    assert not (place / POSTGRESQL).exists()


def run_in(place: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    empty = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), "")
    return subprocess.run(
        [sys.executable, *words],
        env={
            **os.environ,
            **empty,
            "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
            "WEBHOOKS_LOCAL_DIR": str(place),
        },
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )
