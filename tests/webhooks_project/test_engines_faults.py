"""What a `kill -9` of anything leaves behind, and how it is found again."""

import os
import signal

import psycopg
import pytest
import redis

from tests.webhooks_project.conftest import flags, query
from tests.webhooks_project.waiting import eventually
from webhooks_project.engines.launch import birth
from webhooks_project.engines.locks import Lock


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not birth(pid))


def kill_guardian(cluster) -> None:
    """Until its lock is free: it has threads, and the last one to go holds it."""
    kill(cluster.guardian_pid())
    eventually(lambda: cluster.guardian_pid() is None)


def answers(cluster) -> bool:
    try:
        return query(cluster, "SELECT 1") == [(1,)] and flags(cluster).ping()
    except (psycopg.OperationalError, redis.ConnectionError):
        return False


def test_engines_of_a_killed_guardian_are_adopted(cluster):
    cluster.ensure()
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    first = cluster.guardian_pid()
    kill_guardian(cluster)
    assert answers(cluster)
    cluster.ensure()
    assert (cluster.pid("postgresql"), cluster.pid("valkey")) == engines
    assert cluster.guardian_pid() not in (None, first)


def test_adopted_engines_end_with_their_last_user(cluster):
    cluster.ensure()
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    kill_guardian(cluster)
    cluster.ensure()
    cluster.release()
    assert cluster.wait_until_stopped()
    assert not any(birth(pid) for pid in engines)


def test_a_guardian_asked_to_end_takes_the_engines_along_and_the_next_user_starts_anew(cluster):
    cluster.ensure()
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    os.kill(cluster.guardian_pid(), signal.SIGTERM)
    assert cluster.wait_until_stopped()
    assert not any(birth(pid) for pid in engines)
    cluster.ensure()
    assert answers(cluster)


@pytest.mark.parametrize("engine", ["postgresql", "valkey"])
def test_a_killed_engine_comes_back_with_its_data(cluster, engine):
    cluster.ensure()
    query(cluster, "CREATE TABLE kept AS SELECT 7 AS number")
    flags(cluster).set("kept", "yes")
    first = cluster.pid(engine)
    kill(first)
    eventually(lambda: cluster.pid(engine) not in (None, first) and answers(cluster))
    assert query(cluster, "SELECT number FROM kept") == [(7,)]
    assert flags(cluster).get("kept") == "yes"


@pytest.mark.parametrize("engine", ["postgresql", "valkey"])
def test_ensure_waits_for_a_killed_engine(cluster, engine):
    cluster.ensure()
    kill(cluster.pid(engine))
    eventually(lambda: cluster.pid(engine) is None)
    cluster.ensure()
    assert answers(cluster)


def test_an_adopted_engine_that_is_killed_comes_back(cluster):
    cluster.ensure()
    kill_guardian(cluster)
    cluster.ensure()
    first = cluster.pid("postgresql")
    kill(first)
    eventually(lambda: cluster.pid("postgresql") not in (None, first) and answers(cluster))


def test_everything_killed_at_once_starts_again_with_its_data(cluster):
    cluster.ensure()
    query(cluster, "CREATE TABLE kept AS SELECT 7 AS number")
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    kill_guardian(cluster)
    for pid in engines:
        kill(pid)
    cluster.ensure()
    assert answers(cluster)
    assert query(cluster, "SELECT number FROM kept") == [(7,)]


def test_a_pid_file_that_names_a_stranger_is_not_believed(cluster):
    cluster.ensure()
    layout = cluster.layout
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    kill_guardian(cluster)
    for pid in engines:
        kill(pid)
    stranger = os.getpid()
    for name in ("postgresql", "valkey"):
        with Lock(layout.engine_lock(name)) as lock:
            eventually(lambda lock=lock: not lock.held())
            lock.write(f"{stranger} {birth(stranger)}\n")
    pid_file = layout.data("postgresql") / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(stranger), *lines[1:]]) + "\n")
    cluster.ensure()
    assert answers(cluster)
    assert stranger not in (cluster.pid("postgresql"), cluster.pid("valkey"))
    cluster.release()
    assert cluster.wait_until_stopped()  # and this process is still here to say so


def test_an_initdb_that_was_killed_half_way_is_done_again(cluster, start_user):
    start_user(cluster.layout.directory)
    unfinished = cluster.layout.directory / "postgresql.new"
    eventually((unfinished / "base").exists)
    initdb = eventually(lambda: cluster.pid("postgresql"))
    kill(initdb)
    assert not cluster.layout.data("postgresql").exists()
    cluster.ensure()
    assert answers(cluster)
    assert not unfinished.exists()


def test_rubbish_in_place_of_an_unfinished_initdb_is_removed(cluster):
    unfinished = cluster.layout.directory / "postgresql.new"
    (unfinished / "base").mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    cluster.ensure()
    assert answers(cluster)
    assert not unfinished.exists()


def test_a_guardian_killed_during_its_first_start_is_replaced(cluster, start_user):
    users = [start_user(cluster.layout.directory) for _ in range(2)]
    eventually((cluster.layout.directory / "postgresql.new").exists)
    eventually(cluster.guardian_pid)
    kill_guardian(cluster)
    cluster.ensure()
    assert answers(cluster)
    for user in users:
        user.kill()
