"""`docs/performance.md` and its pictures, written from the results of the last runs.

The results themselves are kept beside it, in `docs/performance/`, so that the two commands which
write parts of the page do not have to repeat each other's measurements.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import report
from growth import Point
from machine import Machine
from pictures import Chart, row_of, size_label
from place import CHECKOUT
from report import table
from retention import Pruning
from soak import Soak
from soak import report as soak_table
from targets import Results, targets

PAGE = CHECKOUT / "docs" / "performance.md"
FOLDER = CHECKOUT / "docs" / "performance"
SCENARIOS, GROWTH, SOAK = (FOLDER / f"{name}.json" for name in ("scenarios", "growth", "soak"))


@dataclasses.dataclass
class Growth:
    """What `make bench-growth` measured."""

    machine: Machine
    when: str
    seconds: float
    history: list[Point]
    subscriptions: list[Point]
    payloads: list[Point]
    pruning: Pruning

    @classmethod
    def of(cls, values: dict[str, Any]) -> Growth:
        """From `dataclasses.asdict`, as it is kept in a file."""
        points = {
            name: [Point(**one) for one in values[name]]
            for name in ("history", "subscriptions", "payloads")
        }
        return cls(
            **{
                **values,
                **points,
                "machine": Machine(**values["machine"]),
                "pruning": Pruning(**values["pruning"]),
            }
        )

    @property
    def exact(self) -> bool:
        measured: list[Point | Pruning] = [*self.history, *self.subscriptions, *self.payloads]
        return not any(one.missing or one.duplicates for one in [*measured, self.pruning])


def write(part: Results | Growth | Soak) -> None:
    """Keep these results, and write the page anew from all that are kept."""
    FOLDER.mkdir(exist_ok=True)
    kept = {Results: SCENARIOS, Growth: GROWTH, Soak: SOAK}[type(part)]
    kept.write_text(json.dumps(dataclasses.asdict(part), indent=1, ensure_ascii=False) + "\n")
    sections = [HEAD]
    if SCENARIOS.exists():
        sections.append(scenarios(Results.of(json.loads(SCENARIOS.read_text()))))
    if GROWTH.exists():
        grown = Growth.of(json.loads(GROWTH.read_text()))
        for name, picture in pictures(grown).items():
            (FOLDER / name).write_text(picture)
        sections.append(growth(grown))
    if SOAK.exists():
        sections.append(soaked(Soak.of(json.loads(SOAK.read_text()))))
    PAGE.write_text("\n\n".join(sections) + "\n")


def text(part: Results | Growth | Soak) -> str:
    """The same for the terminal; of the scenarios the tables alone."""
    if isinstance(part, Results):
        tables = (
            report.scenarios, report.others, report.processor, report.waits, report.nothing,
            report.storage,
        )  # fmt: skip
        return "\n\n".join([str(part.machine), *(make(part) for make in tables)])
    return growth(part) if isinstance(part, Growth) else soaked(part)


HEAD = """\
# Performance

`make bench`, `make bench-growth` and `make soak-database` wrote this page; do not edit it. Every
figure of a section is of one run on one machine, with the database, the broker, the receiver, the
application and the workers all on it. Ratios tell more than rates: run it on yours.

How it is measured: real worker processes as `make up` starts them, embedded PostgreSQL with
`fsync` on, Valkey with its append-only file on, and one receiver on loopback that notes every
`webhook-id` before it answers. After each scenario its log is held against what was published:
*missing* and *duplicates* must be 0, and every delivery must be recorded as succeeded. All
receivers are one server on one port, with a path for each subscription, so connections are kept
alive between them; there is no TLS."""


def scenarios(results: Results) -> str:
    missed = [one for one in targets(results) if not one.met]
    parts = [
        "## Scenarios",
        f"{results.when}, {results.seconds / 60:.1f} minutes, {results.machine}.",
        report.scenarios(results),
        verdict(len(missed)),
        WHAT_IS_WHAT,
        "## What it is compared with",
        report.others(results),
        COMPARED,
        "## Where the time goes",
        report.processor(results),
        report.waits(results),
        TIMES,
        report.nothing(results),
        report.storage(results),
        STORAGE,
        IN_THE_WAY,
    ]
    return "\n\n".join(parts)


def verdict(missed: int) -> str:
    if not missed:
        return "Every demand is met."
    number = "One demand is" if missed == 1 else f"{missed} demands are"
    return f"{number} not met in this run; the table of processor time below says what it went to."


WHAT_IS_WHAT = """\
- **backlog**: published before a worker runs, to 20 subscriptions; from the first arrival to the
  last. All other rates count from the first call of `publish` to the last arrival.
- **observed**: more such backlogs, drained by turns by a worker as it is and by one that counts,
  rolls up and logs no attempt (`benchmarks/unobserved.py`); the median of the turns of each.
- **wide**: events for 5,000 subscriptions each, published one after the other.
- **100,000 matches**: one event for so many subscriptions, just loaded, which PostgreSQL has no
  statistics of; then ten events for other subscriptions, while it is being delivered.
- **live**: events for 20 subscriptions each, published one after the other.
- **narrow**: events for one of 20,000 subscriptions each, drawn at random; published one after the
  other; by two processes with four threads each; then with `publish_many`, a hundred at a time.
- **api**: the same events, each for one of 20,000 subscriptions, by `POST /events` over sixteen
  connections, and by `POST /events/batch` a hundred at a time. *publish alone* is `publish()` from
  as many processes as the web has, with sixteen threads in all.
- **latency**: fifty events a second on a schedule that does not wait for slow calls; from the
  moment that an event was due to be published to its arrival, for one of 20 subscriptions, then
  for all 20.
- **skewed**: one subscription gets 450 events a second, 100 others fifty between them; by turns
  with and without the busy one. The rate is that of the offered load. Here, in *tenants*
  and in *slow* the p99 is the median of those of stretches of a hundred arrivals, two seconds: in
  milliseconds, one pause of the machine or its disk would decide the p99 of them all.
- **tenants**: one tenant's 1,000 subscriptions have a backlog of 30,000 deliveries, which keeps the
  machine busy; another tenant's 100 subscriptions get fifty events a second between them; by turns
  without the backlog and with it. The rate is that of the backlog and the events together. *steady*
  has 450 events a second for the thousand instead, one of them each, 45 at a time.
- **slow**: 10 receivers of 100 take requests and never answer, and time out after the default
  10 s; by turns with them and with ten more healthy ones in their place. The rate is that of the
  ninety.
- **scale out**: a backlog for receivers that answer after 50 ms. Waiting is the bound there, ten
  requests in flight for each of four subscriptions a worker, so twice the workers have twice the
  subscriptions. *with all* is one worker with as many subscriptions as four had: its threads do
  not wait for receivers, so one process holds many requests in flight, and further ones add
  processors rather than patience."""

COMPARED = """\
django-webhook2 runs as it comes: Celery's default pool with 2 processes, nothing tuned, in an
environment of its own, on the same engines and with the same receiver. Its scenarios are shorter
than ours, with 1,000 subscriptions for *wide* and one for *narrow*; what is compared are rates.

The limit is what the machine can do when only the unavoidable is done: a bare libcurl multi loop
posts the same bodies to the same receiver, with 200 requests in flight, while `COPY` writes the
same rows into tables with the same indexes."""

TIMES = """\
Processor time is that of the whole process tree of a program, from the beginning of the load until
the last delivery is recorded. *latency* counts from when an event was due; in the closed loops,
where each `publish` begins when the one before has returned, that is when the call began."""

STORAGE = """\
WAL counts from the beginning of the load until the last delivery is recorded, with the full pages
that PostgreSQL writes after a checkpoint. Rows are those of the tables of deliveries, over a whole
trial with its warm-up, divided by the deliveries in it (the three of *narrow* share one); in place
are the updates that no index notices. Dead rows are what autovacuum had not removed yet when the
workers ended. The last column is the most memory that a worker held at once."""

IN_THE_WAY = """\
A worker is one Python process, and an interpreter fills one core at most: where *cores: worker* is
near 1, Python is the bound. `py-spy record --threads --pid …` beside `make bench ARGS="--only
backlog"` shows what it spends its time on; `make bench-trace` follows single events from `publish`
to their receiver, with the milliseconds of each step. The limit has all of that in C. To come near
it takes more processes where there are more cores (*scale out*).

What a worker's time buys, by the kernel's account of its threads in a *backlog* of 200,000: of 94
µs a delivery the transport's thread takes 62, settling 23 and claiming 8. What is ours of it,
each step made alone in a loop: to sign a request and build it 7 µs, to tell libcurl of it 3, to
judge the answer and decide what follows 1.4, to write the attempt's row as JSON 2.6, to count it
1.3, to write its line of the log 1.8. The rest is libcurl, the kernel, and what the processor's
caches have lost meanwhile. A fifth of the two processors is idle, because threads wait for each
other and for PostgreSQL. Tried by turns, and no quicker: a second thread that settles, a fair
lock around what the threads compute, other times after which the interpreter changes threads
(0.03 to 5 ms), and waiting until more results share a settlement. One event, of which each step
is made alone in a loop, takes 219 µs of Python and 440 of PostgreSQL to publish, 61 to wake, 322
and 370 to claim, 178 and 427 to settle. An event that comes alone every 20 ms (*latency*) costs
about twice that: three programs and six threads are woken for it, and find nothing in the
processor's caches. What comes more often shares claims and settlements, so *narrow* costs less
for each event although there are more."""


def growth(grown: Growth) -> str:
    pruned = grown.pruning
    parts = [
        "## Growth",
        f"`make bench-growth`, {grown.when}, {grown.seconds / 60:.1f} minutes, {grown.machine}.",
        GROWN,
        "![Cost against the number of deliveries in history](performance/history.svg)",
        _points(grown.history, "deliveries in history", {"tables, MiB": "table_mib"}),
        "![Cost against the number of subscriptions](performance/subscriptions.svg)",
        _points(
            grown.subscriptions,
            "subscriptions",
            {
                "match one topic, µs": "match",
                "topic index, MiB": "index_mib",
                "to build it, ms": "index_build_ms",
            },
        ),
        "![Cost against the size of the body](performance/payloads.svg)",
        _points(grown.payloads, "KiB of body", {}),
        "## Retention",
        f"""\
`prune` removed {pruned.deliveries:,} deliveries with their attempts, and their {pruned.events:,}
events, in {pruned.seconds:.1f} s: {pruned.rate:,.0f} deliveries a second, {_per(pruned)} µs of
processor time each. An installation that makes 1,000 deliveries a second spends
{100 * 1000 / pruned.rate:.0f} % of the time on it. Beside it, a backlog was drained at
{pruned.drain_beside:,.0f} deliveries a second instead of {pruned.drain_alone:,.0f}, while
{pruned.pruned_beside:,.0f} a second were removed; {pruned.missing} were missing,
{pruned.duplicates} came twice.""",
        PARTITIONS,
    ]
    return "\n\n".join(parts)


GROWN = """\
*deliver* is the processor time of all programs for one delivery of a backlog, from claim to
settled; *publish* is the median time of a call while no worker runs. The tables that grow have
their statistics, as autovacuum keeps them. At each size everything published arrived once."""

PARTITIONS = """\
Partitions by time would be dropped in milliseconds each, and cost every delivery something, for a
claim and an update by id look into each. Tried with 400,000 deliveries in 91 partitions: a claim
for 20 subscriptions took 4.8 ms instead of 1.0, to settle 200 deliveries 23.6 ms instead of 1.6.
So retention deletes rows in batches, which costs a delivery little and only once."""


def soaked(soak: Soak) -> str:
    return "\n\n".join(
        [
            "## Soak",
            f"`make soak-database`, {soak.when}, {soak.machine}.",
            f"""\
{soak.samples[-1].delivered:,} deliveries at full speed, published a hundred events at a time to 20
subscriptions, while `prune` removes what succeeded more than {soak.keep_seconds:.0f} s ago. Sizes
are those of the tables of deliveries; the last row is after everything is removed.""",
            soak_table(soak),
        ]
    )


def _per(pruned: Pruning) -> str:
    return f"{1e6 * pruned.cpu / pruned.deliveries:.0f}"


def _points(points: list[Point], size: str, more: dict[str, str]) -> str:
    head = [size, "deliver, µs of CPU", "publish, ms", "missing", "duplicates", *more]
    rows = [
        [
            f"{one.size:,}",
            f"{one.delivery_cpu:,.0f}",
            f"{one.publish / 1000:.1f}",
            str(one.missing),
            str(one.duplicates),
            *(f"{getattr(one, name):,.1f}" for name in more.values()),
        ]
        for one in points
    ]
    return table(head, rows)


def pictures(grown: Growth) -> dict[str, str]:
    """File names, and the pictures to be in them."""
    found = {}
    for name, points, what, label in (
        ("history", grown.history, "deliveries in history", size_label),
        ("subscriptions", grown.subscriptions, "subscriptions", size_label),
        ("payloads", grown.payloads, "KiB of body", str),
    ):
        labels = [label(one.size) for one in points]
        charts = [
            Chart(
                "one delivery", f"µs of CPU, by {what}", labels, [p.delivery_cpu for p in points]
            ),
            Chart("publish", f"ms, by {what}", labels, [one.publish / 1000 for one in points]),
        ]
        if name == "subscriptions":
            charts += [
                Chart("match one topic", f"µs, by {what}", labels, [one.match for one in points]),
                Chart("topic index", f"MiB, by {what}", labels, [one.index_mib for one in points]),
            ]
        caption = (
            f"Cost of a delivery and of a publish, by {what}, from {labels[0]} to {labels[-1]}"
        )
        found[f"{name}.svg"] = row_of(charts, caption)
    return found
