"""Several programs as one: started together, restarted when they die, ended together.

Knows nothing of what the programs do. Each runs in a process group of its own, so that a Ctrl-C
at the terminal reaches the supervisor alone, which then ends them. If the supervisor itself is
killed, the kernel kills them (see `child.py`).
"""

from __future__ import annotations

import contextlib
import os
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
from typing import TextIO

from webhooks_project.child import as_child

COLOURS = (36, 33, 32, 35, 34, 96, 93, 92)
LINE_BYTES = 65536
TICK_SECONDS = 0.05
STOP_SECONDS = 12.0
RESTART_SECONDS = 1.0
MAX_DEATHS = 5
WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Program:
    """One program of the tree.

    It counts as ready when `ready_file` exists (removed before each start), or when `ready_url`
    answers 200, or with neither as soon as it runs.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the supervisor."""
    ready_file: Path | None = None
    ready_url: str | None = None
    pass_fds: Sequence[int] = ()
    cwd: Path | None = None


class _Child:
    """The present process of a program, and when earlier ones died."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.process: subprocess.Popen[bytes] | None = None
        self.reader: threading.Thread | None = None
        self.ready = False
        self.deaths: list[float] = []
        self.start_at = 0.0

    def looks_ready(self) -> bool:
        if self.process is None:
            return False
        if self.program.ready_file is not None:
            return self.program.ready_file.exists()
        return self.program.ready_url is None or _answers(self.program.ready_url)

    def signal_group(self, sign: signal.Signals) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sign)


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

    `run()` blocks and answers to signals; `start()`, `wait_until_ready()` and `stop()` do the
    same from another thread. Every line that a program writes comes out on `output` behind its
    name, in colour if that is a terminal. `revive` is called in each round, and says what it did.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        output: TextIO = sys.stdout,
        *,
        on_ready: Callable[[], None] | None = None,
        revive: Callable[[], Sequence[str]] = tuple,
        stop_seconds: float = STOP_SECONDS,
    ) -> None:
        self._children = {program.name: _Child(program) for program in programs}
        self._output = output
        self._output_lock = threading.Lock()
        self._colour = output.isatty()
        self._width = max(len(name) for name in self._children)
        self._on_ready = on_ready
        self._revive = revive
        self._stop_seconds = stop_seconds
        self._ready = threading.Event()
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
        while not self._ready.wait(TICK_SECONDS):
            if self._thread is not None and not self._thread.is_alive():
                raise RuntimeError(self.reason or "The programs were stopped.")
            if time.monotonic() > deadline:
                late = [name for name, child in self._children.items() if not child.ready]
                raise RuntimeError(f"Not ready within {seconds:g} s: {', '.join(late)}")

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
        def ask(*_: object) -> None:
            self._stop_asked += 1

        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {sign: signal.signal(sign, ask) for sign in signals}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    def _loop(self) -> int:
        try:
            while not self._stop_asked and not self.reason:
                for child in self._children.values():
                    if child.process is None and time.monotonic() >= child.start_at:
                        self._spawn(child)
                    elif child.process is not None and child.process.poll() is not None:
                        self._died(child, self._bury(child))
                    child.ready = child.ready or child.looks_ready()
                if not self._ready.is_set() and all(
                    child.ready for child in self._children.values()
                ):
                    self._ready.set()
                    if self._on_ready is not None:
                        self._on_ready()
                for line in self._revive():
                    self._say("engines", line)
                time.sleep(TICK_SECONDS)
        finally:
            self._end_all()
        return 1 if self.reason else 0

    def _spawn(self, child: _Child) -> None:
        program = child.program
        if program.ready_file is not None:
            program.ready_file.unlink(missing_ok=True)
        child.process = subprocess.Popen(  # noqa: S603
            as_child(program.command, signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **program.env},
            cwd=program.cwd,
            pass_fds=tuple(program.pass_fds),
            start_new_session=True,
        )
        child.reader = threading.Thread(
            target=self._read, args=(program.name, child.process), daemon=True
        )
        child.reader.start()

    def _read(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Pass on whole lines, until the program and all that it has started are gone."""
        if process.stdout is not None:
            with process.stdout as stream:
                rest = b""
                while data := os.read(stream.fileno(), LINE_BYTES):
                    *lines, rest = (rest + data).split(b"\n")
                    if len(rest) >= LINE_BYTES:
                        lines.append(rest)
                        rest = b""
                    if lines:
                        self._say(name, *(line.decode(errors="replace") for line in lines))
                if rest:
                    self._say(name, rest.decode(errors="replace"))

    def _say(self, name: str, *lines: str) -> None:
        prefix = f"{name:<{self._width}} | "
        if self._colour:
            number = list(self._children).index(name) if name in self._children else 0
            prefix = f"\x1b[{COLOURS[number % len(COLOURS)]}m{prefix}\x1b[0m"
        with self._output_lock:
            try:
                self._output.write("".join(f"{prefix}{line.rstrip()}\n" for line in lines))
                self._output.flush()
            except (BrokenPipeError, ValueError):
                # Nobody listens any more, as after `up | head`: end, and say no more. What is
                # left in the buffer goes nowhere, or the interpreter would fail with it at its end.
                nowhere = open(os.devnull, "w")  # noqa: SIM115
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(nowhere.fileno(), self._output.fileno())
                self._output = nowhere
                self._stop_asked = max(1, self._stop_asked)

    def _bury(self, child: _Child) -> int:
        """Kill what an ended process left behind, and take in its last output; its status."""
        child.signal_group(signal.SIGKILL)
        if child.reader is not None:
            child.reader.join(1)  # a process with a session of its own may keep the pipe open
        status = child.process.wait() if child.process is not None else 0
        child.process = None
        child.ready = False
        return status

    def _died(self, child: _Child, status: int) -> None:
        now = time.monotonic()
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        child.deaths = [death for death in child.deaths if now - death <= WITHIN_SECONDS] + [now]
        name = child.program.name
        if len(child.deaths) < MAX_DEATHS:
            child.start_at = now + RESTART_SECONDS
            self._say(name, f"ended with {how}; next start in {RESTART_SECONDS:g} s")
        else:
            self.reason = (
                f"{name} ended with {how}, for the {len(child.deaths)}th time within "
                f"{WITHIN_SECONDS:g} s; giving up."
            )
            self._say(name, self.reason)

    def _end_all(self) -> None:
        for child in self._children.values():
            if child.process is not None:
                child.process.terminate()
        deadline = time.monotonic() + self._stop_seconds
        while left := [child for child in self._children.values() if child.process is not None]:
            late = time.monotonic() > deadline or self._stop_asked >= 2
            for child in left:
                if late:
                    self._say(child.program.name, "does not end; killed")
                    child.signal_group(signal.SIGKILL)
                if late or (child.process is not None and child.process.poll() is not None):
                    self._bury(child)
            time.sleep(TICK_SECONDS)
