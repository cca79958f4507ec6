"""PostgreSQL refuses root; the ways around that, and from one to the other."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.webhooks_project.conftest import flags, query
from webhooks_project.engines import EngineError, identity
from webhooks_project.engines.cluster import CHECKOUT
from webhooks_project.engines.identity import choose, launch
from webhooks_project.engines.layout import Layout
from webhooks_project.engines.postgresql import programs

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def layout(tmp_path):
    """A layout whose shared home, if it gets one, is removed at the end."""
    layout = Layout.of(tmp_path / "local")
    layout.directory.mkdir(mode=0o700)
    yield layout
    shutil.rmtree(identity.SHARED / f"webhooks-{identity.fingerprint(layout.directory)}", True)


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root is refused by PostgreSQL")
def test_an_ordinary_user_runs_it_as_itself(layout):
    assert choose(layout, programs()).run_as == ""


@as_root
def test_root_runs_it_in_a_namespace_and_the_files_stay_roots(layout, make_cluster):
    cluster = make_cluster(layout.directory)
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]
    data = layout.data("postgresql")
    assert not data.is_symlink()
    assert {path.lstat().st_uid for path in data.rglob("*")} == {0}


@as_root
def test_without_namespaces_root_runs_it_as_nobody(layout, make_cluster):
    cluster = make_cluster(layout.directory, namespaces=False)
    cluster.ensure()
    assert query(cluster, "SELECT 1") == [(1,)]
    assert flags(cluster).ping()
    data = layout.data("postgresql").resolve()
    assert data.stat().st_uid == identity._nobody().pw_uid
    assert data.stat().st_mode & 0o777 == 0o700
    assert layout.directory.stat().st_mode & 0o777 == 0o700
    with open(f"/proc/{cluster.pid('postgresql')}/status") as status:
        assert f"Uid:\t{identity._nobody().pw_uid}" in status.read()


@as_root
def test_data_survive_the_change_from_one_way_to_the_other_and_back(layout, make_cluster):
    for number, namespaces in enumerate([True, False, True, False]):
        cluster = make_cluster(layout.directory, namespaces=namespaces)
        cluster.ensure()
        query(cluster, "CREATE TABLE IF NOT EXISTS kept (number int)")
        query(cluster, f"INSERT INTO kept VALUES ({number})")
        assert query(cluster, "SELECT count(*) FROM kept") == [(number + 1,)]
        cluster.release()
        assert cluster.wait_until_stopped()


@as_root
def test_a_move_that_was_cut_short_is_done_again(layout, make_cluster):
    cluster = make_cluster(layout.directory)
    cluster.ensure()
    query(cluster, "CREATE TABLE kept AS SELECT 7 AS number")
    cluster.release()
    assert cluster.wait_until_stopped()
    data = layout.data("postgresql")
    data.rename(data.with_name("postgresql.old"))  # killed just before the link was made
    moved = make_cluster(layout.directory, namespaces=False)
    moved.ensure()
    assert query(moved, "SELECT number FROM kept") == [(7,)]
    assert not data.with_name("postgresql.old").exists()


@as_root
def test_programs_that_nobody_cannot_reach_are_copied_once(layout, tmp_path):
    closed = tmp_path / "closed"
    shutil.copytree(programs().parent, closed / "pg", symlinks=True)
    closed.chmod(0o700)
    found = choose(layout, closed / "pg" / "bin", namespaces=False)
    assert found.home in found.programs.parents
    version = run(found.command("postgres", "--version"))
    assert version.stdout.startswith("postgres (PostgreSQL) 18")
    made = found.programs.stat().st_ino
    assert choose(layout, closed / "pg" / "bin", namespaces=False) == found
    assert found.programs.stat().st_ino == made


@as_root
def test_a_shared_home_that_others_could_have_planted_is_refused(layout):
    home = identity.SHARED / f"webhooks-{identity.fingerprint(layout.directory)}"
    home.mkdir()
    home.chmod(0o777)
    with pytest.raises(EngineError, match="should be a directory that only root can write"):
        choose(layout, programs(), namespaces=False)


@as_root
def test_a_user_without_a_name_runs_it_in_a_namespace(tmp_path):
    python = next(filter(None, map(nameless, [os.path.realpath(sys.executable), SYSTEM])), None)
    if python is None:
        pytest.skip("this checkout or its Python cannot be reached by other users")
    local = Path(tempfile.mkdtemp(prefix="webhooks-test-"))  # pytest's are closed to others
    os.chown(local, 54321, 54321)
    script = (
        "import sys; from webhooks_project.engines import Cluster; c = Cluster(sys.argv[1]);"
        "c.ensure(); c.release(); print(c.wait_until_stopped())"
    )
    try:
        done = run([*python, "-c", script, str(local)])
        assert (done.stdout, done.stderr) == ("True\n", "")
        assert {path.lstat().st_uid for path in local.rglob("*")} == {54321}
    finally:
        shutil.rmtree(local)


SYSTEM = "/usr/bin/python{}.{}".format(*sys.version_info)


def nameless(python: str) -> list[str] | None:
    """This Python, run by a user whom the system does not know, if that user can reach it."""
    path = os.pathsep.join([str(CHECKOUT), *filter(None, sys.path)])
    become = launch("/usr/bin/env", run_as="setuid:54321:54321")
    command = [*become, "-C", "/", f"PYTHONPATH={path}", python]
    return None if run([*command, "-c", "import webhooks_project.engines"]).returncode else command


def test_a_way_that_is_closed_is_named_with_its_reason(layout, monkeypatch):
    monkeypatch.setattr(identity, "_known", lambda _uid: False)
    monkeypatch.setattr(identity, "_try_out", lambda *_: "unshare: not permitted")
    monkeypatch.setattr(identity, "_reachable_programs", lambda _as, programs, _home: programs)
    with pytest.raises(EngineError, match="a user namespace: unshare: not permitted"):
        choose(layout, programs())


def test_a_program_that_cannot_be_started_ends_the_launcher_with_a_sentence():
    done = run(launch("/no/such/program"))
    assert done.returncode == 125
    assert "/no/such/program" in done.stderr
    assert "No such file" in done.stderr


def test_the_launcher_refuses_a_directory_that_cannot_be_written():
    done = run(launch("/bin/true", reach="/proc/self/fdinfo/none"))
    assert done.returncode == 125
    assert "cannot be written" in done.stderr


def test_everything_below_a_directory_changes_hands_the_top_last(tmp_path, monkeypatch):
    (tmp_path / "top" / "base").mkdir(parents=True)
    (tmp_path / "top" / "base" / "1").touch()
    given = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid, **_: given.append(os.fspath(path)))
    identity.give(tmp_path / "top", 4242)
    assert given[-1] == str(tmp_path / "top")
    assert str(tmp_path / "top" / "base" / "1") in given
    assert stat.S_ISDIR(os.stat(tmp_path).st_mode)
