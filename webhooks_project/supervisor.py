"""Several programs as one: started together, restarted when they die, ended together.

Knows nothing of what the programs do. Each runs in a process group of its own,
so that a Ctrl-C at the terminal reaches the supervisor alone, which then ends
them in order. If the supervisor itself is killed, `lifeline.py` ends them.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TextIO

LIFELINE = Path(__file__).with_name("lifeline.py")
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)
LINE_BYTES = 65536
TICK_SECONDS = 0.1
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOP_SECONDS = 12.0
DEATHS = 5
WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Program:
    """One program of the tree.

    It counts as ready when `ready_file` exists (removed before each start), or
    when `ready_url` answers 200, or with neither as soon as it runs.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the supervisor."""
    ready_file: Path | None = None
    ready_url: str | None = None
    pass_fds: Sequence[int] = ()
    cwd: Path | None = None


def restart_delay(deaths: Sequence[float], now: float) -> float | None:
    """Seconds until a program that died at these times is started again; None: give up.

    1, 2, 4 … seconds for each death within the last minute; five are too many.
    """
    recent = [death for death in deaths if now - death <= WITHIN_SECONDS]
    if len(recent) >= DEATHS:
        return None
    return float(2 ** max(0, len(recent) - 1))


def describe(status: int) -> str:
    """`Popen.returncode` in words."""
    if status >= 0:
        return f"status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


class _Child:
    """The present process of a program, and when earlier ones died."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = False
        self.deaths: list[float] = []
        self.start_at: float | None = 0.0
        self.unfinished = b""

    @property
    def running(self) -> bool:
        return self.process is not None

    def ended(self) -> bool:
        """Has the process ended? Asked without reaping it: its group's id stays taken."""
        if self.process is None:
            return False
        if hasattr(os, "waitid"):
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self.process.pid, flags) is not None
        return self.process.poll() is not None

    def looks_ready(self) -> bool:
        if not self.running:
            return False
        if self.program.ready_file is not None:
            return self.program.ready_file.exists()
        return self.program.ready_url is None or _answers(self.program.ready_url)


def _answers(url: str) -> bool:
    # No proxy of the environment: this is a question to ourselves.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=0.5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError, ValueError):
        return False


class Supervisor:
    """A tree of programs.

    `run()` blocks and answers to signals; `start()`, `wait_until_ready()` and
    `stop()` do the same from another thread. Every line that a program writes
    comes out on `output` behind its name, in colour if that is a terminal.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        output: TextIO = sys.stdout,
        *,
        on_ready: Callable[[], None] | None = None,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        names = [program.name for program in programs]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"The programs need names that differ; these are {names}")
        self._children = {program.name: _Child(program) for program in programs}
        self._output = output
        self._colour = output.isatty()
        self._width = max(len(name) for name in names)
        self._on_ready = on_ready
        self._stop_seconds = stop_seconds
        self._selector = selectors.DefaultSelector()
        self._lifeline: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._stop_asked = 0
        self._thread: threading.Thread | None = None
        self.reason = ""
        """Why the tree ended by itself; empty while it runs and after `stop()`."""

    def run(self) -> int:
        """Until a SIGINT, SIGTERM, SIGHUP or `stop()` (0), or a program is given up (1).

        A second signal kills what is left at once.
        """
        with self._signals():
            return self._loop()

    def start(self) -> None:
        """The same in a thread, without signals."""
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)
        self._thread.start()

    def wait_until_ready(self, seconds: float) -> None:
        """Raises RuntimeError with what is missing, at once if the tree has ended."""
        deadline = time.monotonic() + seconds
        while not self._ended.is_set():
            if self._ready.wait(TICK_SECONDS):
                return
            if time.monotonic() > deadline:
                late = [name for name, child in self._children.items() if not child.ready]
                raise RuntimeError(f"Not ready within {seconds:g} s: {', '.join(late)}")
        raise RuntimeError(self.reason or "The programs were stopped.")

    def stop(self) -> int:
        """End everything and wait for it; what `run()` would have returned."""
        self._stop_asked += 1
        return self.wait()

    def wait(self) -> int:
        """After `start()`: until the tree has ended; what `run()` would have returned."""
        if self._thread is not None:
            self._thread.join()
        return 1 if self.reason else 0

    def pid(self, name: str) -> int | None:
        """The present process of a program; None between a death and the next start."""
        process = self._children[name].process
        return process.pid if process is not None else None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def ask(_sign: int, _frame: FrameType | None) -> None:
            self._stop_asked += 1

        reader, writer = os.pipe()
        for end in (reader, writer):
            os.set_blocking(end, False)
        before = {sign: signal.signal(sign, ask) for sign in ENDING_SIGNALS}
        # A death or a signal ends the wait for output.
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda *_: None)
        waker = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, None)
        try:
            yield
        finally:
            signal.set_wakeup_fd(waker)
            for sign, handler in before.items():
                signal.signal(sign, handler)
            os.close(reader)
            os.close(writer)

    def _loop(self) -> int:
        self._lifeline = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", str(LIFELINE), str(self._stop_seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not self._stop_asked and not self.reason:
                self._start_what_is_due()
                self._pump()
                self._note_deaths()
                self._note_ready()
        finally:
            self._end_all()
            self._cut_lifeline()
            self._selector.close()
            self._ended.set()
        return 1 if self.reason else 0

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        for child in self._children.values():
            if not child.running and child.start_at is not None and now >= child.start_at:
                self._spawn(child)

    def _spawn(self, child: _Child) -> None:
        program = child.program
        if program.ready_file is not None:
            program.ready_file.unlink(missing_ok=True)
        child.start_at = None
        try:
            child.process = subprocess.Popen(  # noqa: S603
                list(program.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **program.env},
                cwd=program.cwd,
                pass_fds=tuple(program.pass_fds),
                start_new_session=True,
            )
        except OSError as error:
            self._died(child, f"could not be started: {error}")
            return
        self._tell_lifeline(f"+{child.process.pid}")
        if child.process.stdout is not None:
            os.set_blocking(child.process.stdout.fileno(), False)
            self._selector.register(child.process.stdout, selectors.EVENT_READ, child)

    def _pump(self) -> None:
        """Wait a moment for output, and pass on whole lines of it."""
        for key, _ in self._selector.select(TICK_SECONDS):
            if isinstance(key.data, _Child):
                self._read(key.data)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(key.fd, 4096)

    def _read(self, child: _Child) -> bool:
        """Pass on what is there; False when there is no more for now, or for ever."""
        stream = child.process.stdout if child.process is not None else None
        if stream is None:
            return False
        try:
            data = os.read(stream.fileno(), LINE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._forget(stream)
        *lines, child.unfinished = (child.unfinished + data).split(b"\n")
        if len(child.unfinished) > LINE_BYTES or (not data and child.unfinished):
            lines, child.unfinished = [*lines, child.unfinished], b""
        for line in lines:
            self._say(child.program.name, line.decode(errors="replace").rstrip("\r"))
        return bool(data)

    def _forget(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(stream)

    def _say(self, name: str, text: str) -> None:
        prefix = f"{name:<{self._width}} | "
        if self._colour:
            number = list(self._children).index(name) if name in self._children else 0
            prefix = f"\x1b[{COLOURS[number % len(COLOURS)]}m{prefix}\x1b[0m"
        try:
            self._output.write(f"{prefix}{text}\n")
            self._output.flush()
        except (BrokenPipeError, ValueError):
            # Nobody listens any more, as after `up | head`: end, and say no more. What is left in
            # the buffer goes nowhere, or the interpreter would fail with it when it ends.
            nowhere = open(os.devnull, "w")  # noqa: SIM115
            with contextlib.suppress(OSError, ValueError):
                os.dup2(nowhere.fileno(), self._output.fileno())
            self._output = nowhere
            self._stop_asked = max(1, self._stop_asked)

    def _note_deaths(self) -> None:
        for child in self._children.values():
            if child.ended():
                self._died(child, f"ended with {describe(self._bury(child))}")

    def _bury(self, child: _Child) -> int:
        """Take in the last output of an ended process, end what it left behind, reap it."""
        process = child.process
        if process is None:
            return 0
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            while self._read(child):
                pass
            self._forget(process.stdout)
            process.stdout.close()
        status = process.wait()
        self._tell_lifeline(f"-{process.pid}")
        child.process = None
        child.ready = False
        return status

    def _died(self, child: _Child, how: str) -> None:
        now = time.monotonic()
        child.deaths = [death for death in child.deaths if now - death <= WITHIN_SECONDS] + [now]
        delay = restart_delay(child.deaths, now)
        name = child.program.name
        if delay is None:
            self.reason = (
                f"{name} {how}, for the {len(child.deaths)}th time within "
                f"{WITHIN_SECONDS:g} s; giving up."
            )
            self._say(name, self.reason)
            return
        child.start_at = now + delay
        self._say(name, f"{how}; next start in {delay:g} s")

    def _note_ready(self) -> None:
        for child in self._children.values():
            child.ready = child.ready or child.looks_ready()
        if not self._ready.is_set() and all(child.ready for child in self._children.values()):
            self._ready.set()
            if self._on_ready is not None:
                self._on_ready()

    def _end_all(self) -> None:
        for child in self._children.values():
            if child.process is not None:  # unreaped, so the id is still its own
                os.kill(child.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._stop_seconds
        killed = False
        while any(child.running for child in self._children.values()):
            self._pump()
            for child in self._children.values():
                if child.ended():
                    self._bury(child)
            if not killed and (time.monotonic() > deadline or self._stop_asked >= 2):
                killed = True
                self._kill_all()

    def _kill_all(self) -> None:
        for child in self._children.values():
            if child.process is not None:
                self._say(child.program.name, "does not end; killed")
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)

    def _tell_lifeline(self, line: str) -> None:
        if self._lifeline is not None and self._lifeline.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._lifeline.stdin.write(line.encode() + b"\n")
                self._lifeline.stdin.flush()

    def _cut_lifeline(self) -> None:
        if self._lifeline is not None and self._lifeline.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._lifeline.stdin.close()
            self._lifeline.wait()
