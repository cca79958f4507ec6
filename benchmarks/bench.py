"""Measure this project: `make bench`, or `make bench-quick` for a glance.

    python benchmarks/bench.py [--growth] [--quick] [--only NAME …] [--directory DIR]
    python benchmarks/bench.py --soak DELIVERIES [--keep SECONDS]

A whole run writes docs/performance.md; a quick one, or one of some scenarios, only prints. With
`--growth` the costs are measured at many sizes instead, up to ten million deliveries in history;
with `--soak` so many deliveries are made at full speed, while `prune` removes the old ones.

Exit status 1 if a delivery was missing, came twice or was not recorded, or if something did not
run. A demand that is not met is said in the tables; it does not fail the run, because it may be
the machine's fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import document
import growth
import isolation
import limit
import over_http
import reference
import retention
import scenarios
import soak
from machine import Machine
from measuring import BenchmarkError, now_text
from phase import Measured
from place import CHECKOUT, Place, open_place
from scenarios import FULL, QUICK, Sizes
from targets import Results

from webhooks_project.engines import EngineError

NAMES = (
    "backlog",
    "observed",
    "wide",
    "matches",
    "live",
    "narrow",
    "api",
    "latency",
    "skewed",
    "tenants",
    "slow",
    "scale-out",
)
NOT_QUICK = ("observed", "skewed", "tenants", "slow", "scale-out")
SUBSCRIPTIONS = 20
# What this project has in flight to them: ten for each.
WIDTH = 10 * SUBSCRIPTIONS


class Run:
    """Fills `results`, scenario by scenario."""

    def __init__(self, place: Place, results: Results, sizes: Sizes) -> None:
        self._place = place
        self._results = results
        self._sizes = sizes

    def scenarios(self) -> dict[str, Callable[[], None]]:
        """By name, in the order in which they are run; a quick run leaves out the longest."""
        return {
            name: getattr(self, f"_{name.replace('-', '_')}")
            for name in NAMES
            if not (self._results.quick and name in NOT_QUICK)
        }

    def _backlog(self) -> None:
        def measure_limit() -> None:
            self._results.limit = limit.measure(self._place, SUBSCRIPTIONS, WIDTH)

        self._add(
            scenarios.backlog(self._place, self._sizes.backlog, SUBSCRIPTIONS, after=measure_limit)
        )
        self._compare(reference.backlog(self._place, self._sizes.reference, SUBSCRIPTIONS))

    def _wide(self) -> None:
        self._add(scenarios.wide(self._place, self._sizes.wide_events))
        self._compare_live("wide", 1, self._sizes.reference // 2)

    def _matches(self) -> None:
        self._add(scenarios.matches(self._place, self._sizes.matches))

    def _observed(self) -> None:
        self._add(scenarios.observed(self._place, 2 * self._sizes.backlog, rounds=6))

    def _live(self) -> None:
        self._add(scenarios.live(self._place, self._sizes.live_events, SUBSCRIPTIONS))
        self._compare_live("live", self._sizes.reference // 2 // SUBSCRIPTIONS, SUBSCRIPTIONS)

    def _narrow(self) -> None:
        self._add(*scenarios.narrow(self._place, self._sizes))
        self._compare_live("narrow", self._sizes.reference // 4, 1)

    def _api(self) -> None:
        self._add(*over_http.api(self._place, self._sizes))

    def _latency(self) -> None:
        self._add(*scenarios.latency(self._place, self._sizes.steady_seconds, SUBSCRIPTIONS))

    def _skewed(self) -> None:
        self._add(isolation.skewed(self._place, self._sizes.steady_seconds, rounds=3))

    def _tenants(self) -> None:
        self._add(*isolation.tenants(self._place, self._sizes.steady_seconds, rounds=4))

    def _slow(self) -> None:
        events = self._sizes.live_events // 5
        self._add(isolation.slow(self._place, events, self._sizes.steady_seconds))

    def _scale_out(self) -> None:
        self._add(*isolation.scale_out(self._place, self._sizes.scale_seconds))

    def _compare_live(self, scenario: str, events: int, subscriptions: int) -> None:
        self._compare(reference.published_live(self._place, scenario, events, subscriptions))

    def _add(self, *measured: Measured) -> None:
        for one in measured:
            self._results.ours[one.scenario] = one
            say(f"  {one.scenario}: {one.rate:,.0f} a second")

    def _compare(self, measured: Measured) -> None:
        self._results.reference[measured.scenario] = measured
        say(f"  {measured.side}: {measured.rate:,.0f} a second")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(place: Place, options: argparse.Namespace) -> Results:
    results = Results(machine=Machine.this(), when=now_text(), quick=options.quick)
    began = time.monotonic()
    for name, run in Run(place, results, QUICK if options.quick else FULL).scenarios().items():
        if not options.only or name in options.only:
            say(f"{name} …")
            run()
    results.seconds = time.monotonic() - began
    return results


def measure_growth(place: Place, *, quick: bool) -> document.Growth:
    began, when = time.monotonic(), now_text()

    def sizes(all_of_them: Sequence[int]) -> Sequence[int]:
        return all_of_them[:-2] if quick else all_of_them

    say("history …")
    history = growth.history(place, sizes(growth.HISTORY))
    say("subscriptions …")
    subscriptions = growth.subscriptions(place, sizes(growth.SUBSCRIPTIONS))
    say("payloads …")
    payloads = growth.payloads(place, sizes(growth.KIBIBYTES))
    say("retention …")
    pruning = retention.pruning(place)
    return document.Growth(
        machine=Machine.this(),
        when=when,
        seconds=time.monotonic() - began,
        history=history,
        subscriptions=subscriptions,
        payloads=payloads,
        pruning=pruning,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--growth", action="store_true", help="cost by size, not the scenarios")
    parser.add_argument("--soak", type=int, metavar="DELIVERIES", help="so many at full speed")
    parser.add_argument(
        "--keep",
        type=float,
        default=60.0,
        help="seconds until a soak's deliveries are pruned",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything; two minutes")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=[], help="these scenarios alone"
    )
    parser.add_argument("--json", action="store_true", help="print figures for programs")
    parser.add_argument(
        "--directory",
        type=Path,
        default=CHECKOUT / ".local" / "bench",
        help="where engines and logs are (%(default)s)",
    )
    return parser.parse_args()


def main() -> int:
    options = _options()
    # So that the blocks that end workers and engines run for `kill` as they do for Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found: Results | document.Growth | soak.Soak
    try:
        with open_place(options.directory.resolve()) as place:
            if options.soak:
                found = soak.soak(place, options.soak, options.keep)
            elif options.growth:
                found = measure_growth(place, quick=options.quick)
            else:
                found = measure(place, options)
    except (BenchmarkError, EngineError) as error:
        say(str(error))
        return 1
    if options.json:
        print(json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False))
    else:
        text = document.text(found)
        print(f"\n{text}\n\nIn {found.seconds:.0f} s.")
    if not options.quick and not options.only:
        document.write(found)
        say(f"{document.PAGE} is written.")
    if not found.exact:
        say("FAILED: deliveries are missing, came twice, or are not recorded.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
