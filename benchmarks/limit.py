"""The limit: what the machine can do when nothing but the unavoidable is done.

Unavoidable are a POST of each body to its receiver, and one row in the database for each event,
delivery and attempt. So: the bare libcurl multi loop, and `COPY` of the very rows that this
project wrote, into tables of the same shape; each alone, then both at the same time.

    python limit.py post BODIES PORT SUBSCRIPTIONS DELIVERIES WIDTH

is the first of these as a process: it posts, says `{"ready": true}` before, waits for a line, and
answers with its seconds.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psycopg
from children import Child, child
from measuring import BenchmarkError, cpu_seconds
from place import HERE, Place, receiving

_TABLES = ("deliveries_event", "deliveries_delivery", "deliveries_attempt")
# What this project sends besides the body, with the lengths that it has.
_HEADERS = [
    "Content-Type: application/json",
    "User-Agent: webhooks/1 (+standard-webhooks)",
    "webhook-timestamp: 1700000000",
    f"webhook-signature: v1,{'a' * 44}",
    f"X-Webhook-Signature: sha256={'a' * 64}",
    f"X-Webhook-Event-Id: {'a' * 36}",
    "X-Webhook-Event-Topic: order.created",
    "X-Webhook-Timestamp: 1700000000",
    "Expect:",
    "Accept-Encoding:",
]


@dataclass(frozen=True)
class Limit:
    """Seconds for so many deliveries: posting alone, copying alone, both at once."""

    deliveries: int
    post: float
    copy: float
    both: float
    post_cpu: float
    """CPU seconds of the loop that posts."""
    receiver_cpu: float

    @property
    def rate(self) -> float:
        return self.deliveries / self.both


def measure(place: Place, subscriptions: int, width: int) -> Limit:
    """For the deliveries that the database holds. `width` requests are in flight at once."""
    with tempfile.TemporaryDirectory(prefix="limit-", dir=place.directory) as directory:
        bodies = Path(directory, "bodies")
        with place.connect() as connection:
            deliveries = _write_bodies(connection, bodies)
            rows = [_read(connection, table) for table in _TABLES]
            with (
                receiving(Path(directory, "arrivals")) as receiver,
                child(
                    [
                        *(sys.executable, str(HERE / "limit.py"), "post", str(bodies)),
                        *(str(receiver.ports[0]), str(subscriptions)),
                        *(str(deliveries), str(width)),
                    ],
                    log=place.directory / "limit.log",
                ) as poster,
            ):
                before = cpu_seconds(poster.pid), cpu_seconds(receiver.process.pid)
                post = poster.ask(do="post")["seconds"]
                after = cpu_seconds(poster.pid), cpu_seconds(receiver.process.pid)
                _make_tables(connection)
                copy = _copy(connection, rows)
                _make_tables(connection)
                both = _both(poster, connection, rows)
                if receiver.arrived.count() != 2 * deliveries:
                    raise BenchmarkError(
                        f"the limit: {receiver.arrived.lines} of {2 * deliveries} requests arrived"
                    )
    return Limit(deliveries, post, copy, both, after[0] - before[0], after[1] - before[1])


def _both(poster: Child, connection: psycopg.Connection[Any], rows: list[list[bytes]]) -> float:
    """The time until the later of the two is done."""
    began = time.monotonic()
    copying = threading.Thread(target=_copy, args=(connection, rows))
    copying.start()
    poster.ask(do="post")
    copying.join()
    return time.monotonic() - began


def _write_bodies(connection: psycopg.Connection[Any], path: Path) -> int:
    """One line of JSON for each event, `[id, body]`; returns the number of deliveries."""
    with path.open("w") as file:
        for name, body in connection.execute("SELECT id, body FROM deliveries_event"):
            file.write(json.dumps([name, bytes(body).decode()]) + "\n")
    row = connection.execute("SELECT count(*) FROM deliveries_delivery").fetchone()
    return int(row[0]) if row else 0


def _read(connection: psycopg.Connection[Any], table: str) -> list[bytes]:
    with connection.cursor().copy(f"COPY {table} TO STDOUT") as copy:
        return [bytes(block) for block in copy]


def _make_tables(connection: psycopg.Connection[Any]) -> None:
    """Empty tables with the columns and the indexes of those that are measured."""
    connection.execute("DROP SCHEMA IF EXISTS bound CASCADE")
    connection.execute("CREATE SCHEMA bound")
    for table in _TABLES:
        connection.execute(f"CREATE TABLE bound.{table} (LIKE {table} INCLUDING ALL)")
    connection.execute("CHECKPOINT")


def _copy(connection: psycopg.Connection[Any], rows: list[list[bytes]]) -> float:
    """Copy the rows; returns the seconds."""
    began = time.monotonic()
    for table, blocks in zip(_TABLES, rows, strict=True):
        with connection.cursor().copy(f"COPY bound.{table} FROM STDIN") as copy:
            for block in blocks:
                copy.write(block)
    return time.monotonic() - began


def _requests(
    bodies: list[tuple[str, bytes]], port: int, subscriptions: int, deliveries: int
) -> Iterator[tuple[str, str, bytes]]:
    """URL, id and body of each delivery: every event goes to every subscription."""
    urls = [f"http://127.0.0.1:{port}/{number}" for number in range(subscriptions)]
    for number in range(deliveries):
        event, receiver = divmod(number, subscriptions)
        yield (urls[receiver], *bodies[event])


def _post(requests: Iterator[tuple[str, str, bytes]], width: int) -> int:
    """The loop: `width` handles, each taking the next request when it is done."""
    import pycurl

    multi = pycurl.CurlMulti()
    multi.setopt(pycurl.M_MAXCONNECTS, width)

    def begin(handle: Any) -> int:
        for url, name, body in requests:
            handle.setopt(pycurl.URL, url)
            handle.setopt(pycurl.POSTFIELDS, body)
            handle.setopt(pycurl.HTTPHEADER, [*_HEADERS, f"webhook-id: {name}"])
            multi.add_handle(handle)
            return 1
        return 0

    handles = []
    in_flight = answered = 0
    for _ in range(width):
        handle = pycurl.Curl()
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.PROXY, "")
        handle.setopt(pycurl.TIMEOUT_MS, 10_000)
        handle.setopt(pycurl.WRITEFUNCTION, len)
        handles.append(handle)
        in_flight += begin(handle)
    while in_flight:
        multi.perform()
        left = 1
        while left:
            left, done, failed = multi.info_read()
            for _, _, why in failed:
                raise BenchmarkError(f"the limit: a request failed: {why}")
            for handle in done:
                multi.remove_handle(handle)
                answered += 1
                in_flight += begin(handle) - 1
        if in_flight:
            multi.select(1.0)
    return answered


def _serve(path: Path, port: int, subscriptions: int, deliveries: int, width: int) -> None:
    bodies = [(name, body.encode()) for name, body in map(json.loads, path.open())]
    print(json.dumps({"ready": True}), flush=True)
    for _ in iter(sys.stdin.readline, ""):
        began = time.monotonic()
        posted = _post(_requests(bodies, port, subscriptions, deliveries), width)
        print(json.dumps({"seconds": time.monotonic() - began, "posted": posted}), flush=True)


if __name__ == "__main__":
    _serve(Path(sys.argv[2]), *map(int, sys.argv[3:7]))
