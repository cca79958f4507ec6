"""How fast one worker drains a backlog: this project and django-webhook2, on this machine, now.

    python benchmarks/compare.py [--deliveries N] [--peer-deliveries N] [--json]

For each side the events are published while no worker runs. Then its worker is started, and the
time from the first to the last arrival at a receiver is taken. Both sides use the same embedded
PostgreSQL and Valkey (with databases of their own), the same receiver and the same kind of
payload; the reference package runs as it comes, in Celery's default pool with 2 processes, in an
environment of its own that is made at the first run.

Exit status: 0 if this project is at least `--ratio` times as fast and, on both sides, every
delivery arrived exactly once and is recorded as delivered; 1 if not, or if a side did not run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psycopg
import redis
from measuring import (
    Arrivals,
    BenchmarkError,
    Growing,
    Machine,
    compare_arrivals,
    cpu_seconds,
    run,
    running,
    tail,
    wait_for_growth,
)
from psycopg import sql
from sides import CHECKOUT, HERE, PEER_PACKAGE, PEER_PROCESSES, Side, ours, peer

from webhooks_project.engines import Cluster, EngineError
from webhooks_project.engines.layout import DATABASE_PORT, DATABASE_USER, POSTGRESQL, VALKEY, Layout

LOCAL = CHECKOUT / ".local" / "bench"
SETTLE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Drained:
    """What one side did. Times in seconds."""

    side: str
    deliveries: int
    publish_seconds: float
    """To make the tables and the backlog, interpreter start included."""
    arrivals: Arrivals
    recorded: int
    """Deliveries that the side's own tables call delivered, when nothing arrived any more."""
    cpu: dict[str, float]
    """CPU seconds by program, from the first arrival until everything was recorded."""
    load_before: float
    """The machine's load average (1 minute) before the worker was started."""

    @property
    def complete(self) -> bool:
        return self.arrivals.exact and self.recorded == self.deliveries


class Bench:
    """The engines and the files that both sides use."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.layout: Layout = cluster.layout

    def drain(self, side: Side, events: int, subscriptions: int) -> Drained:
        """Load a side, start its worker, and measure until the backlog is gone."""
        deliveries = events * subscriptions
        logs = f"{side.database}-{{}}.log"
        self._make_empty(side)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=LOCAL) as directory:
            log, expected = Path(directory, "arrivals"), Path(directory, "expected")
            with _receiver(log, side.id_pattern) as (receiver, port):
                say(f"{side.name}: publishing {deliveries:,} deliveries")
                began = time.monotonic()
                arguments = (str(events), str(subscriptions), str(port), str(expected))
                run(
                    [*side.load, *arguments],
                    log=LOCAL / logs.format("load"),
                    env=side.env,
                    cwd=side.cwd,
                )
                published = time.monotonic() - began
                self._checkpoint()
                load_before = os.getloadavg()[0]
                say(f"{side.name}: draining")
                worker_log = LOCAL / logs.format("worker")
                with running(side.worker, log=worker_log, env=side.env, cwd=side.cwd) as worker:
                    try:
                        cpu, recorded = self._measure(side, deliveries, log, worker, receiver)
                    except BenchmarkError as error:
                        raise BenchmarkError(
                            f"{side.name}: {error}; from {worker_log}:\n{tail(worker_log)}"
                        ) from None
                # What the worker still sent on its way out is in the log by now.
                return Drained(
                    side=side.name,
                    deliveries=deliveries,
                    publish_seconds=published,
                    arrivals=compare_arrivals(log.read_text(), _expected(expected)),
                    recorded=recorded,
                    cpu=cpu,
                    load_before=load_before,
                )

    def _measure(
        self,
        side: Side,
        deliveries: int,
        log: Path,
        worker: subprocess.Popen[bytes],
        receiver: subprocess.Popen[bytes],
    ) -> tuple[dict[str, float], int]:
        pids = {
            "worker": worker.pid,
            "PostgreSQL": self._engine_pid(POSTGRESQL),
            "Valkey": self._engine_pid(VALKEY),
            "receiver": receiver.pid,
        }
        growing = Growing(log)
        wait_for_growth(growing, 1, worker)
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        wait_for_growth(growing, deliveries, worker)
        recorded = deliveries - self._wait_until_recorded(side)
        return {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()}, recorded

    def _engine_pid(self, engine: str) -> int:
        pid: int | None = self._cluster.pid(engine)
        if pid is None:
            raise BenchmarkError(f"{engine} does not run; see {self.layout.engine_log(engine)}")
        return pid

    def _wait_until_recorded(self, side: Side) -> int:
        """Returns how many deliveries are not recorded as delivered, 0 as soon as it is 0."""
        deadline = time.monotonic() + SETTLE_SECONDS
        with self._connect(side.database) as connection:
            while True:
                row = connection.execute(side.unfinished).fetchone()
                if row is None or row[0] == 0 or time.monotonic() > deadline:
                    return 0 if row is None else int(row[0])
                time.sleep(0.02)

    def _make_empty(self, side: Side) -> None:
        name = sql.Identifier(side.database)
        with self._connect("postgres") as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
        for number in side.redis_databases:
            with redis.Redis(
                unix_socket_path=str(self.layout.valkey_socket), db=number
            ) as connection:
                connection.flushdb()

    def _checkpoint(self) -> None:
        """Write out what publishing left in memory, so that it is not part of the measurement."""
        with self._connect("postgres") as connection:
            connection.execute("CHECKPOINT")

    def _connect(self, database: str) -> psycopg.Connection[Any]:
        return psycopg.connect(
            host=str(self.layout.postgresql_host),
            port=DATABASE_PORT,
            user=DATABASE_USER,
            dbname=database,
            autocommit=True,
        )


@contextlib.contextmanager
def _receiver(log: Path, id_pattern: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    log.touch()
    process = subprocess.Popen(
        [sys.executable, str(HERE / "receiver.py"), str(log), id_pattern],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        port = process.stdout.readline()
        if not port.strip().isdigit():
            raise BenchmarkError("the receiver did not start; what it said is above")
        yield process, int(port)


def _expected(path: Path) -> set[tuple[str, str]]:
    return {(where, name) for where, name in map(str.split, path.read_text().splitlines())}


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two comparisons at once would drop each other's databases."""
    LOCAL.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (LOCAL / "compare.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchmarkError(
                f"another comparison runs in {LOCAL}; wait until it has ended"
            ) from None
        yield


def compare(options: argparse.Namespace) -> tuple[Drained, Drained]:
    """Measure the reference package, then this project."""
    cluster = Cluster(LOCAL)
    cluster.ensure()
    try:
        bench = Bench(cluster)
        reference = bench.drain(
            peer(LOCAL, cluster.layout),
            options.peer_deliveries // options.subscriptions,
            options.subscriptions,
        )
        return (
            bench.drain(
                ours(LOCAL), options.deliveries // options.subscriptions, options.subscriptions
            ),
            reference,
        )
    finally:
        cluster.release()


def ratio(mine: Drained, reference: Drained) -> float:
    return mine.arrivals.rate / reference.arrivals.rate if reference.arrivals.rate else 0.0


def table(machine: Machine, mine: Drained, reference: Drained, subscriptions: int) -> str:
    """The report for people, 80 columns wide."""
    sides = (mine, reference)
    rows: list[tuple[str, str, str]] = []

    def row(label: str, *values: str) -> None:
        rows.append((label, values[0], values[1]))

    row("", *(side.side for side in sides))
    row("deliveries", *(f"{side.deliveries:,}" for side in sides))
    row("seconds, first to last arrival", *(f"{side.arrivals.seconds:.2f}" for side in sides))
    row("deliveries a second", *(f"{side.arrivals.rate:,.0f}" for side in sides))
    row("missing", *(f"{side.arrivals.missing:,}" for side in sides))
    row("duplicates", *(f"{side.arrivals.duplicates:,}" for side in sides))
    row("unexpected", *(f"{side.arrivals.unexpected:,}" for side in sides))
    row("recorded as delivered", *(f"{side.recorded:,}" for side in sides))
    row("seconds to publish, before", *(f"{side.publish_seconds:.1f}" for side in sides))
    row("load of the machine before", *(f"{side.load_before:.2f}" for side in sides))
    row("CPU a delivery, µs", "", "")
    for name in mine.cpu:
        row(f"  {name}", *(f"{1e6 * side.cpu[name] / side.deliveries:,.0f}" for side in sides))
    lines = [
        f"Draining a backlog to {subscriptions} subscriptions with one worker",
        str(machine)[:80],
        "",
        *(f"{label:<32}{left:>20}{right:>28}".rstrip() for label, left, right in rows),
    ]
    lines += ["", f"{PEER_PACKAGE} runs as it comes: prefork, {PEER_PROCESSES} processes."]
    if mine.deliveries != reference.deliveries:
        lines += ["The backlogs differ in size; what is compared are the rates."]
    return "\n".join(lines)


def verdict(mine: Drained, reference: Drained, needed: float) -> tuple[bool, str]:
    found = ratio(mine, reference)
    faults = [f"{side.side}: not complete" for side in (mine, reference) if not side.complete]
    if found < needed:
        faults.append(f"{needed:g} times was wanted")
    text = f"This project is {found:.1f} times as fast."
    return not faults, f"{text} FAILED: {'; '.join(faults)}." if faults else text


def as_json(machine: Machine, mine: Drained, reference: Drained, passed: bool) -> str:
    def side(drained: Drained) -> dict[str, Any]:
        values = dataclasses.asdict(drained)
        values["arrivals"]["per_second"] = drained.arrivals.rate
        return values

    return json.dumps(
        {
            "machine": dataclasses.asdict(machine),
            "this_project": side(mine),
            "reference": side(reference),
            "ratio": ratio(mine, reference),
            "passed": passed,
        },
        indent=2,
        ensure_ascii=False,
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").partition("\n")[0],
        epilog="Everything it makes is below .local/bench.",
    )
    parser.add_argument("--deliveries", type=_count, default=20_000, help="(%(default)s)")
    parser.add_argument(
        "--peer-deliveries",
        type=_count,
        default=2_000,
        help="backlog of the reference package, which does about 100 a second (%(default)s)",
    )
    parser.add_argument("--subscriptions", type=_count, default=20, help="(%(default)s)")
    parser.add_argument(
        "--ratio", type=float, default=15.0, help="how many times as fast is enough (%(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    options = parser.parse_args()
    for name in ("deliveries", "peer_deliveries"):
        if getattr(options, name) % options.subscriptions:
            parser.error(
                f"--{name.replace('_', '-')} {getattr(options, name)} is not a multiple of "
                f"--subscriptions {options.subscriptions}; each event goes to all of them"
            )
    return options


def main() -> int:
    options = _options()
    # So that the blocks that end workers and engines run for `kill` as they do for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machine = Machine.this()
    try:
        with _alone():
            mine, reference = compare(options)
    except (BenchmarkError, EngineError) as error:
        say(str(error))
        return 1
    passed, text = verdict(mine, reference, options.ratio)
    if options.json:
        print(as_json(machine, mine, reference, passed))
    else:
        print(f"\n{table(machine, mine, reference, options.subscriptions)}\n\n{text}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
