"""A wall clock of its own for some processes, stepped while they run; the machine's stays."""

from __future__ import annotations

import mmap
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from shutil import which

SOURCE = Path(__file__).with_name("clock.c")


class NotPermitted(Exception):
    """This machine cannot give a process a clock of its own; the text says why."""


class Clock:
    """`variables` are for the environment of the processes that are to live by this clock."""

    def __init__(self, directory: Path) -> None:
        """Raises NotPermitted."""
        compiler = which("cc")
        if compiler is None:
            raise NotPermitted("there is no C compiler (cc) to build the clock with")
        library = directory / "clock.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE], check=True)
        offset = directory / "clock.offset"
        offset.write_bytes(bytes(8))
        self.variables = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(offset)}
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self._try_out()

    def step(self, seconds: int) -> None:
        """Set the clock to the machine's, plus these seconds, at once and for all of them."""
        self._offset[:] = struct.pack("=q", seconds)

    def close(self) -> None:
        self._offset.close()

    def _try_out(self) -> None:
        """Python must tell the time by the stepped clock, and measure by the real one."""
        self.step(3600)
        question = (
            "import datetime, time; "
            "print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
        )
        answer = subprocess.run(
            [sys.executable, "-c", question],
            env={**os.environ, **self.variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        self.step(0)
        told, dated, measured = map(float, answer)
        ahead = (told - time.time(), dated - time.time(), measured - time.monotonic())
        if not all(
            abs(off - wanted) < 60 for off, wanted in zip(ahead, (3600, 3600, 0), strict=True)
        ):
            raise NotPermitted(f"the preloaded clock does not take: it is ahead by {ahead}")
