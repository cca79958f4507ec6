"""How fast one worker drains a backlog: this project and django-webhook2, on this machine, now.

    python benchmarks/compare.py [--deliveries N] [--peer-deliveries N] [--json]

For each side the events are published while no worker runs. Then its worker is started, and the
time from the first to the last arrival at a receiver is taken. Both sides use the same embedded
PostgreSQL and Valkey (with databases of their own), the same receiver and the same kind of
payload; see `reference.py` for the other side. `make bench` measures this and much more.

Exit status: 0 if this project is at least `--ratio` times as fast and, on both sides, every
delivery arrived exactly once and is recorded as delivered; 1 if not, or if a side did not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reference
import scenarios
from machine import Machine
from measuring import BenchmarkError
from phase import Measured
from place import CHECKOUT, open_place

from webhooks_project.engines import EngineError


def ratio(mine: Measured, other: Measured) -> float:
    return mine.rate / other.rate if other.rate else 0.0


def table(machine: Machine, mine: Measured, other: Measured, subscriptions: int) -> str:
    """The report for people, 80 columns wide."""
    sides = (mine, other)
    rows: list[tuple[str, str, str]] = []

    def row(label: str, *values: str) -> None:
        rows.append((label, values[0], values[1]))

    row("", *(side.side for side in sides))
    row("deliveries", *(f"{side.deliveries:,}" for side in sides))
    row("seconds, first to last arrival", *(f"{side.seconds:.2f}" for side in sides))
    row("deliveries a second", *(f"{side.rate:,.0f}" for side in sides))
    row("missing", *(f"{side.missing:,}" for side in sides))
    row("duplicates", *(f"{side.duplicates:,}" for side in sides))
    row("unexpected", *(f"{side.unexpected:,}" for side in sides))
    row("recorded as delivered", *(f"{side.recorded:,}" for side in sides))
    row("load of the machine before", *(f"{side.load_before:.2f}" for side in sides))
    row("CPU a delivery, µs", "", "")
    for name in dict.fromkeys([*other.cpu, *mine.cpu]):
        row(f"  {name}", *(_microseconds(side, name) for side in sides))
    lines = [
        f"Draining a backlog to {subscriptions} subscriptions with one worker",
        str(machine)[:80],
        "",
        *(f"{label:<32}{left:>20}{right:>28}".rstrip() for label, left, right in rows),
    ]
    lines += ["", f"{other.side} runs as it comes: prefork, {reference.PROCESSES} processes."]
    if mine.deliveries != other.deliveries:
        lines += ["The backlogs differ in size; what is compared are the rates."]
    return "\n".join(lines)


def _microseconds(side: Measured, program: str) -> str:
    if program not in side.cpu or not side.deliveries:
        return ""
    return f"{1e6 * side.cpu[program] / side.deliveries:,.0f}"


def verdict(mine: Measured, other: Measured, needed: float) -> tuple[bool, str]:
    found = ratio(mine, other)
    faults = [f"{side.side}: not complete" for side in (mine, other) if not side.exact]
    if found < needed:
        faults.append(f"{needed:g} times was wanted")
    text = f"This project is {found:.1f} times as fast."
    return not faults, f"{text} FAILED: {'; '.join(faults)}." if faults else text


def as_json(machine: Machine, mine: Measured, other: Measured, passed: bool) -> str:
    return json.dumps(
        {
            "machine": dataclasses.asdict(machine),
            "this_project": dataclasses.asdict(mine),
            "reference": dataclasses.asdict(other),
            "ratio": ratio(mine, other),
            "passed": passed,
        },
        indent=2,
        ensure_ascii=False,
    )


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
        with open_place(CHECKOUT / ".local" / "bench") as place:
            print("measuring the reference package", file=sys.stderr, flush=True)
            other = reference.backlog(place, options.peer_deliveries, options.subscriptions)
            print("measuring this project", file=sys.stderr, flush=True)
            mine = scenarios.backlog(place, options.deliveries, options.subscriptions)
    except (BenchmarkError, EngineError) as error:
        print(error, file=sys.stderr)
        return 1
    passed, text = verdict(mine, other, options.ratio)
    if options.json:
        print(as_json(machine, mine, other, passed))
    else:
        print(f"\n{table(machine, mine, other, options.subscriptions)}\n\n{text}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
