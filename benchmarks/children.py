"""Child processes that take a command as a line of JSON and answer with one."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import BenchmarkError, tail


class Child:
    """A running one."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **command: Any) -> Any:
        """Give a command and wait for the answer."""
        self.tell(**command)
        return self.answer()

    def tell(self, **command: Any) -> None:
        """Give a command, and go on; `answer` has to follow."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is told by `answer`
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()

    def end(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def answer(self) -> Any:
        """Raises BenchmarkError with the end of its log if the process ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise BenchmarkError(
                f"{self._log.stem} ended with status {status}; from {self._log}:\n{tail(self._log)}"
            )
        return json.loads(line)


@contextlib.contextmanager
def child(
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[Child]:
    """A child with its complaints in `log`. It says `{"ready": true}` before the first command.

    It is to end when its standard input is closed, as it is at the end of the block.
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            env=env,
            cwd=cwd,
        ) as process,
    ):
        started = Child(process, log)
        started.answer()
        yield started
