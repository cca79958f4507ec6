"""What is computed about the engines without any of them running."""

from pathlib import Path

import pytest
import redis
from kombu import Connection
from kombu.transport.redis import Channel

from webhooks_project import engines
from webhooks_project.engines.guardian import next_pause
from webhooks_project.engines.layout import SOCKET_DIRECTORY_BYTES, Layout, socket_directory

ODD = [
    "/srv/my project/.local",
    "/srv/größe/.local",
    "/srv/a,b/.local",
    "/srv/100%/.local",
    "/srv/what?/.local",
    "/srv/" + "x" * 120,
]


def test_sockets_are_beside_the_data_when_the_path_is_plain_and_short():
    assert socket_directory(Path("/srv/app/.local"), 1000) == Path("/srv/app/.local/run")


@pytest.mark.parametrize("directory", ODD)
def test_sockets_of_a_path_that_clients_cannot_write_down_are_in_a_short_one(directory):
    found = socket_directory(Path(directory), 1000)
    assert str(found).startswith("/tmp/webhooks-1000-")
    assert found == socket_directory(Path(directory), 1000)
    assert found != socket_directory(Path(directory), 1001)


@pytest.mark.parametrize("extra", range(8))
def test_every_socket_path_fits(extra):
    length = SOCKET_DIRECTORY_BYTES - len("/run") - 4 + extra
    layout = Layout(Path("/"), socket_directory(Path("/" + "x" * (length - 1)), 1000))
    assert len(str(layout.postgresql_host / ".s.PGSQL.5432.lock")) <= 103
    assert len(str(layout.valkey_socket)) <= 103


def test_a_symbolic_link_to_a_checkout_has_the_same_engines(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    assert Layout.of(tmp_path / "link" / ".local") == Layout.of(real / ".local")


def test_the_addresses_are_understood_by_the_clients_that_get_them():
    layout = Layout.of("/srv/app/.local")
    pool = redis.ConnectionPool.from_url(layout.redis_url)
    assert pool.connection_kwargs["path"] == "/srv/app/.local/run/valkey.sock"
    assert pool.connection_kwargs["db"] == 1
    channel = object.__new__(Channel)  # a finished one would have connected
    channel.connection = Connection(layout.broker_url).transport
    parameters = channel._connparams()
    assert parameters["path"] == "/srv/app/.local/run/valkey.sock"
    assert parameters["db"] == 0


def test_computing_the_addresses_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setenv("WEBHOOKS_LOCAL_DIR", str(tmp_path / "local"))
    found = engines.configured()
    assert found.database["ENGINE"] == "webhooks_project.postgresql"
    assert found.broker_url.startswith("redis+socket:///")
    assert not (tmp_path / "local").exists()


def test_engines_that_the_environment_names_are_not_embedded(tmp_path, monkeypatch):
    monkeypatch.setenv("WEBHOOKS_LOCAL_DIR", str(tmp_path / "local"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@db.example/hooks")
    monkeypatch.setenv("REDIS_URL", "redis://cache.example/3")
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    found = engines.ensure()
    assert not engines.embedded_database()
    assert not engines.embedded_redis()
    assert found.database["HOST"] == "db.example"
    assert (found.redis_url, found.broker_url) == ("redis://cache.example/3",) * 2
    assert not (tmp_path / "local").exists()


def test_a_broker_of_its_own_leaves_the_flags_embedded(monkeypatch):
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://mq.example//")
    assert engines.broker_url() == "amqp://mq.example//"
    assert engines.redis_url().startswith("unix:///")
    assert engines.embedded_redis()


def test_an_engine_that_does_not_come_up_is_tried_ever_less_often():
    pauses = [0.0]
    while len(pauses) < 9:
        pauses.append(next_pause(pauses[-1]))
    assert pauses == [0, 1, 2, 4, 8, 16, 30, 30, 30]
