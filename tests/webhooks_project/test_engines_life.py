"""Start, share, stop: the engines live as long as somebody uses them."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
import redis

from tests.webhooks_project.conftest import flags, query
from tests.webhooks_project.waiting import eventually
from webhooks_project.engines import EngineError
from webhooks_project.engines.cluster import CHECKOUT
from webhooks_project.engines.launch import birth
from webhooks_project.engines.layout import Layout


def test_the_first_user_starts_them_and_the_last_one_ends_them(cluster):
    cluster.ensure()
    assert query(cluster, "SELECT current_database()") == [("webhooks",)]
    assert flags(cluster).ping()
    pids = [cluster.pid("postgresql"), cluster.pid("valkey"), cluster.guardian_pid()]
    cluster.release()
    assert cluster.wait_until_stopped()
    assert not any(birth(pid) for pid in pids[:2])
    eventually(lambda: not birth(pids[2]))
    with pytest.raises(psycopg.OperationalError):
        query(cluster, "SELECT 1")
    with pytest.raises(redis.ConnectionError):
        flags(cluster).ping()


def test_nothing_is_opened_on_a_network(cluster):
    cluster.ensure()
    assert query(cluster, "SHOW listen_addresses") == [("",)]
    assert flags(cluster).config_get("port") == {"port": "0"}
    assert os.stat(cluster.layout.run).st_mode & 0o777 == 0o700


def test_what_was_stored_is_there_after_a_restart(cluster):
    cluster.ensure()
    query(cluster, "CREATE TABLE kept (word text)")
    query(cluster, "INSERT INTO kept VALUES ('grün')")
    flags(cluster).set("kept", "yes")
    cluster.release()
    assert cluster.wait_until_stopped()
    cluster.ensure()
    assert query(cluster, "SELECT upper(word) FROM kept") == [("GRÜN",)]
    assert flags(cluster).get("kept") == "yes"


def test_ensure_changes_nothing_when_all_is_well(cluster):
    cluster.ensure()
    before = cluster.pid("postgresql"), cluster.pid("valkey"), cluster.guardian_pid()
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: cluster.ensure(), range(200)):
            pass
    assert (cluster.pid("postgresql"), cluster.pid("valkey"), cluster.guardian_pid()) == before


def test_another_user_keeps_them_running(cluster, start_user):
    cluster.ensure()
    pids = cluster.pid("postgresql"), cluster.pid("valkey")
    other = start_user(cluster.layout.directory)
    assert other.stdout.readline().split()[1:] == [str(pid) for pid in pids]
    cluster.release()
    assert query(cluster, "SELECT 1") == [(1,)]
    assert cluster.guardian_pid()
    other.communicate()
    assert cluster.wait_until_stopped()


def test_a_killed_user_is_a_user_no_longer(cluster, start_user):
    user = start_user(cluster.layout.directory)
    user.stdout.readline()
    user.kill()
    assert cluster.wait_until_stopped()


def test_a_subprocess_of_a_user_is_no_user(cluster, start_user):
    user = start_user(cluster.layout.directory, leave_a_child=True)
    child = int(user.stdout.readline())
    try:
        assert cluster.wait_until_stopped()
        assert birth(child)
    finally:
        os.kill(child, 9)


def test_eight_first_users_at_once_share_one_pair_of_engines(cluster, start_user):
    users = [start_user(cluster.layout.directory) for _ in range(8)]
    said = {user.stdout.readline() for user in users}
    assert len(said) == 1
    assert said.pop().startswith("ready ")
    assert cluster.layout.log.read_text().count("postgresql: started") == 1


def test_users_that_come_and_go_at_once_always_find_them(cluster, start_user):
    def use(_: int) -> str:
        user = start_user(cluster.layout.directory)
        first = user.stdout.readline()
        user.communicate()
        return first

    with ThreadPoolExecutor(3) as pool:
        assert all(first.startswith("ready ") for first in pool.map(use, range(12)))


def test_an_engine_can_be_asked_for_later(tmp_path, make_cluster):
    flags_only = make_cluster(tmp_path / "local", ["valkey"])
    flags_only.ensure()
    valkey = flags_only.pid("valkey")
    assert flags_only.pid("postgresql") is None
    both = make_cluster(tmp_path / "local")
    both.ensure()
    assert both.pid("valkey") == valkey
    assert query(both, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "name", ["with a blank", "größe, süß", "long-" + "x" * 150, 'it\'s "$HOME"']
)
def test_any_path_will_do(tmp_path, make_cluster, name):
    cluster = make_cluster(tmp_path / name / ".local")
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]
    assert flags(cluster).ping()
    cluster.release()
    assert cluster.wait_until_stopped()
    eventually(lambda: not cluster.layout.run.exists())


def test_a_path_closed_to_everybody_else_will_do(tmp_path, make_cluster):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    cluster = make_cluster(closed / ".local")
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]
    assert closed.stat().st_mode & 0o777 == 0o700
    assert closed.stat().st_uid == os.geteuid()


def test_a_socket_directory_that_others_can_enter_is_refused(cluster):
    cluster.layout.directory.mkdir()
    cluster.layout.run.mkdir()
    cluster.layout.run.chmod(0o755)
    with pytest.raises(EngineError, match="open to other users"):
        cluster.ensure()
    cluster.layout.run.rmdir()


def test_a_data_directory_of_another_version_is_left_alone(cluster):
    data = cluster.layout.data("postgresql")
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(EngineError, match="made by PostgreSQL 16, and the one here is 18"):
        cluster.ensure()
    assert [path.name for path in data.iterdir()] == ["PG_VERSION"]


def test_a_directory_that_is_no_data_directory_is_left_alone(cluster):
    data = cluster.layout.data("postgresql")
    data.mkdir(parents=True)
    (data / "thesis.txt").write_text("years of work")
    with pytest.raises(EngineError, match="not a PostgreSQL data directory"):
        cluster.ensure()
    assert (data / "thesis.txt").read_text() == "years of work"


def test_a_removed_directory_ends_its_guardian(cluster):
    cluster.ensure()
    guardian = cluster.guardian_pid()
    engines = cluster.pid("postgresql"), cluster.pid("valkey")
    cluster.layout.directory.rename(cluster.layout.directory.with_name("removed"))
    eventually(lambda: not birth(guardian))
    assert not any(birth(pid) for pid in engines)
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("command", ["help", "check", "migrate --help"])
def test_a_command_that_does_not_connect_starts_nothing(tmp_path, command):
    engines = dict.fromkeys(("DATABASE_URL", "REDIS_URL", "CELERY_BROKER_URL"), "")
    settings = {
        "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",  # not those of the tests
        "WEBHOOKS_LOCAL_DIR": str(tmp_path / "local"),
    }
    subprocess.run(
        [sys.executable, "manage.py", *command.split()],
        cwd=CHECKOUT,
        env=os.environ | engines | settings,
        capture_output=True,
        check=True,
    )
    assert not Layout.of(tmp_path / "local").users.exists()


def test_a_user_that_waits_for_the_end_of_others_gets_new_engines_at_once(cluster):
    cluster.ensure()
    cluster.release()
    began = time.monotonic()
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]
    assert time.monotonic() - began < 15
