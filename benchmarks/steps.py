"""Follow single events from `publish` to their receiver: `make bench-trace`.

    python benchmarks/steps.py [--events N] [--rate R] [--show]

Publishes events for one subscription each, far enough apart that each is alone, and prints the
milliseconds of each step. `--show` prints every call that the median event caused, too.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from machine import Machine
from measuring import percentile
from phase import Phase
from place import CHECKOUT, open_place
from report import table
from scenarios import OWN, subscribed, to_each, warm_up
from trial import trial

SUBSCRIPTIONS = 20
# In their order, each with what happens from the moment before until then.
STEPS = {
    "committed": "statements of `publish`, and the commit",
    "woken": "until the wake-up begins: a call to Redis, or a Celery message",
    "taken": "through Redis or the broker, until a worker has it",
    "running": "Celery, if it was a message: until the task runs in a thread",
    "claimed": "claim, with the body, until its last statement",
    "sending": "signing, and the way to libcurl's thread",
    "connected": "libcurl: until there is a connection",
    "arrived": "libcurl and the kernel, until the receiver has the request",
    "answered": "answer, until libcurl's thread has seen it",
    "settled": "settlement, until its commit",
}


@dataclass
class Mark:
    program: str
    kind: str
    began: float
    ended: float
    what: str


@dataclass
class Followed:
    """One event: its moments by name, and the calls that ended before the next `publish`."""

    began: float
    moments: dict[str, float]
    calls: list[Mark] = field(default_factory=list)


def moments(began: float, arrived: float, calls: list[Mark]) -> dict[str, float]:
    """When each step was over; without those that did not happen."""

    def of(program: str, *kinds: str) -> list[Mark]:
        return [one for one in calls if one.program == program and one.kind in kinds]

    found = {"began": began, "arrived": arrived}
    wakes = [one.began for one in of("publisher", "redis", "task sending")]
    database = of("publisher", "database")
    committed = [one.ended for one in database if not wakes or one.ended <= wakes[0]]
    found["committed"] = max(committed, default=began)
    # A worker waits in a call to Redis for what comes, or Celery does and says so.
    waited = [one.ended for one in of("worker", "redis") if wakes and one.ended >= wakes[0]]
    for name, times in (
        ("woken", wakes),
        ("taken", [one.began for one in of("worker", "task received")] or waited),
        ("running", [one.began for one in of("worker", "task begin")]),
        ("sending", [one.began for one in of("worker", "curl begin")]),
        ("answered", [one.began for one in of("worker", "curl end")]),
    ):
        if times:
            found[name] = times[0]
    worker = of("worker", "database")
    if "sending" in found:
        before = [one.ended for one in worker if one.ended <= found["sending"]]
        found["claimed"] = max(before, default=found["sending"])
    if "answered" in found:
        connect, _ = json.loads(of("worker", "curl end")[0].what)
        found["connected"] = found["sending"] + connect
        after = [one for one in worker if one.began >= found["answered"]]
        commits = [one for one in after if one.what == "COMMIT"] or after
        if commits:
            found["settled"] = commits[0].ended
    return found


def follow(directory: Path, events: int, rate: float) -> list[Followed]:
    """Publish, and gather what each program noted."""
    with open_place(directory) as place, trial(place) as bench:
        marks = bench.path("marks")
        marks.mkdir()
        os.environ["MARKS"] = str(marks)
        bench.wrapper = "marking.py"
        receiver, publisher = subscribed(bench, SUBSCRIPTIONS, OWN)
        bench.start_workers()
        pids = {str(bench.pid(name)): name for name in ("publisher", "worker")}
        warm_up(bench, receiver, publisher, **to_each(SUBSCRIPTIONS))
        phase = Phase(bench, receiver)
        phase.publish(publisher, **to_each(SUBSCRIPTIONS), events=events, rate=rate)
        phase.wait()
        bench.wait_until_recorded()
        arrived = {name: float(at) for at, _, name in map(str.split, phase.lines().splitlines())}
        bench.stop_workers()
        publisher.end()
        calls = sorted(read(marks, pids), key=lambda one: one.ended)
        ends = [event.began for event in phase.events[1:]] + [phase.events[-1].began + 1 / rate]
        found = []
        for event, end in zip(phase.events, ends, strict=True):
            mine = [one for one in calls if event.began <= one.ended < end]
            found.append(Followed(event.began, moments(event.began, arrived[event.id], mine), mine))
        return found


def read(marks: Path, pids: dict[str, str]) -> Iterator[Mark]:
    for path in marks.glob("*.json"):
        if path.stem in pids:
            yield from (Mark(pids[path.stem], *one) for one in json.loads(path.read_text()))


def steps(followed: list[Followed]) -> str:
    """The table: the milliseconds of each step, over all events that took it."""
    rows = []
    before = "began"
    for name, what in STEPS.items():
        whole = [one.moments for one in followed if {name, before} <= one.moments.keys()]
        took = [1000 * (one[name] - one[before]) for one in whole]
        since = [1000 * (one[name] - one["began"]) for one in whole]
        if took:
            numbers = (percentile(took, 50), percentile(took, 99), percentile(since, 50))
            rows.append([name, what, *(f"{value:.2f}" for value in numbers), f"{len(took)}"])
            before = name
    return table(["until", "what it takes", "p50", "p99", "since `publish`", "events"], rows)


def shown(one: Followed) -> str:
    """Every call, with the milliseconds since `publish` when it began, and those that it took."""
    return "\n".join(
        f"{1000 * (call.began - one.began):8.2f} {1000 * (call.ended - call.began):7.2f}  "
        f"{call.program:<9}  {call.kind:<13}  {call.what[:80]}"
        for call in one.calls
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=200, help="(%(default)s)")
    parser.add_argument("--rate", type=float, default=10.0, help="a second (%(default)s)")
    parser.add_argument("--show", action="store_true", help="every call of the median event")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    followed = follow(CHECKOUT / ".local" / "bench", options.events, options.rate)
    print(f"{Machine.this()}\n\nMilliseconds of {len(followed)} events, each alone:\n")
    print(steps(followed))
    if options.show:
        followed.sort(key=lambda one: one.moments["arrived"] - one.began)
        print(f"\n   since    took\n{shown(followed[len(followed) // 2])}")


if __name__ == "__main__":
    main()
