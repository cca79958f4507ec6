"""One installation of this project under measurement: receivers, applications, workers."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import cost
import psycopg
from children import Child, child
from measuring import BenchmarkError, cpu_seconds, tail, wait_for_growth
from place import CHECKOUT, HERE, Place, Receiver, receiving

from webhooks_project.programs import DELIVER_QUEUES, RECOVER_QUEUES, beat, listen, web, worker
from webhooks_project.supervisor import Program, Supervisor

# What `manage.py up` gives each of its workers.
THREADS = 128
START_SECONDS = 60.0
SETTLE_SECONDS = 60.0


class Trial:
    """A fresh database and what runs on it. Everything started here ends with the block."""

    def __init__(self, place: Place, directory: Path, stack: contextlib.ExitStack) -> None:
        self.place = place
        self._directory = directory
        self._stack = stack
        self._pids: dict[str, int] = {}
        self._workers: set[str] = set()
        self._publishers: list[Child] = []
        self.wrapper: str | None = None
        """The program that runs what is started from here on: `marking.py`, or `unobserved.py`."""
        self._supervisors: list[Supervisor] = []
        self._log = place.directory / "workers.log"
        self._output: TextIO = stack.enter_context(self._log.open("w"))
        self._numbers = itertools.count()

    def receiver(
        self, name: str = "receiver", *, ports: int = 1, delay: float = 0.0, silent: bool = False
    ) -> Receiver:
        log = self.path("arrivals")
        made = self._stack.enter_context(receiving(log, ports=ports, delay=delay, silent=silent))
        self._pids[name] = made.process.pid
        return made

    def publisher(self, name: str = "publisher") -> Child:
        made = self._stack.enter_context(
            child(
                self._command([sys.executable, str(HERE / "publisher.py")]),
                log=self.place.directory / f"{name}.log",
                cwd=CHECKOUT,
            )
        )
        self._pids[name] = made.pid
        self._publishers.append(made)
        return made

    def caller(self, host: str, port: int, key: str, name: str = "caller") -> Child:
        """A program that publishes over HTTP at this address."""
        made = self._stack.enter_context(
            child(
                [sys.executable, str(HERE / "caller.py")],
                log=self.place.directory / f"{name}.log",
                cwd=CHECKOUT,
            )
        )
        made.ask(do="use", host=host, port=port, key=key)
        self._pids[name] = made.pid
        return made

    def start_web(self, name: str = "web", *, idle: bool = False) -> tuple[str, int]:
        """The web as `manage.py up` starts it, without its limit of requests; its address.

        `idle`: with an application that does nothing.
        """
        listener = self._stack.enter_context(listen("127.0.0.1", 0))
        program = replace(web(listener), name=name, env={"WEBHOOKS_API_RATE_LIMIT": "0"})
        if idle:
            python, _, _, *rest = program.command
            program = replace(program, command=[python, str(HERE / "idle_web.py"), *rest])
        self._start(program)
        address: tuple[str, int] = listener.getsockname()
        return address

    def _start(self, *programs: Program) -> None:
        supervisor = Supervisor(list(programs), self._output, stop_seconds=20)
        self._supervisors.append(supervisor)
        self._stack.callback(self.stop_workers)
        supervisor.start()
        try:
            supervisor.wait_until_ready(START_SECONDS)
        except RuntimeError as error:
            raise BenchmarkError(f"{error}; from {self._log}:\n{tail(self._log)}") from None
        for program in programs:
            pid = supervisor.pid(program.name)
            assert pid is not None
            self._pids[program.name] = pid
            self._workers.add(program.name)

    def path(self, name: str) -> Path:
        """A file of this trial's own."""
        return self._directory / f"{name}-{next(self._numbers)}"

    def start_workers(self, count: int = 1) -> None:
        """All that `manage.py up --workers COUNT` starts, short of the web; ready on return."""
        names = [f"worker {number}" for number in range(1, count + 1)] if count > 1 else ["worker"]
        ready = self._directory
        self._start(
            *(self._worker(name, ready) for name in names),
            worker("recover", RECOVER_QUEUES, THREADS, ready),
            beat(ready),
        )

    def _worker(self, name: str, ready: Path) -> Program:
        made = worker(name, DELIVER_QUEUES, THREADS, ready)
        return replace(made, command=self._command(made.command))

    def _command(self, command: Sequence[str]) -> list[str]:
        python, *rest = command
        return [python, *([str(HERE / self.wrapper)] if self.wrapper else []), *rest]

    def pid(self, name: str) -> int:
        return self._pids[name]

    def stop_workers(self) -> None:
        """End them as a deployment does. Harmless if none runs."""
        for supervisor in self._supervisors:
            supervisor.stop()
        self._supervisors.clear()
        self._pids = {name: pid for name, pid in self._pids.items() if name not in self._workers}
        self._workers.clear()

    def cpu(self) -> dict[str, float]:
        """CPU seconds of each program until now."""
        pids = self._pids | self.place.engine_pids()
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    def cpu_since(self, before: dict[str, float]) -> dict[str, float]:
        return {name: spent - before.get(name, 0.0) for name, spent in self.cpu().items()}

    def memory(self) -> float:
        """The most bytes that a worker of the queue `deliver` has held at once."""
        found = [0.0]
        for name in self._workers:
            if name.startswith("worker"):
                status = Path(f"/proc/{self._pids[name]}/status").read_text()
                found.append(1024.0 * int(status.partition("VmHWM:")[2].split()[0]))
        return max(found)

    def wal_bytes(self) -> int:
        with self.place.connect() as connection:
            return cost.wal_bytes(connection)

    def rows(self) -> dict[str, float]:
        """See `cost.rows`. Ends the workers, so it is the last that is asked of a trial."""
        self.stop_workers()
        for publisher in self._publishers:
            publisher.ask(do="disconnect")
        with self.place.connect() as connection:
            return cost.rows(connection)

    def wait_for_arrivals(self, receiver: Receiver, wanted: int) -> None:
        """Until `wanted` have arrived in all, or none has for a long time."""
        wait_for_growth(receiver.arrived, wanted, self._check)

    def wait_until_recorded(self, pending: int = 0) -> int:
        """Until so few are pending; returns how many are recorded as succeeded, in all."""
        deadline = time.monotonic() + SETTLE_SECONDS
        with self.place.connect() as connection:
            # By the small index of what is pending: looking costs the measurement nothing.
            while self._count(connection, "pending") > pending and time.monotonic() < deadline:
                time.sleep(0.02)
            return self._count(connection, "succeeded")

    def recorded(self) -> int:
        with self.place.connect() as connection:
            return self._count(connection, "succeeded")

    def _count(self, connection: psycopg.Connection[Any], status: str) -> int:
        row = connection.execute(
            "SELECT count(*) FROM deliveries_delivery WHERE status = %s", [status]
        ).fetchone()
        return 0 if row is None else int(row[0])

    def _check(self) -> None:
        for supervisor in self._supervisors:
            if supervisor.reason:
                raise BenchmarkError(f"{supervisor.reason} from {self._log}:\n{tail(self._log)}")


@contextlib.contextmanager
def trial(place: Place) -> Iterator[Trial]:
    place.make_ours()
    with (
        tempfile.TemporaryDirectory(prefix="trial-", dir=place.directory) as directory,
        contextlib.ExitStack() as stack,
    ):
        yield Trial(place, Path(directory), stack)
