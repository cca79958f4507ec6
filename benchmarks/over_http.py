"""The scenario *api*: the same events by `publish` in a program's own processes, and over HTTP."""

from __future__ import annotations

from phase import Measured
from place import Place
from scenarios import OWN, Sizes, run_phase, subscribed, to_each, warm_up
from trial import Trial, trial

from webhooks_project.programs import WEB_PROCESSES

CONNECTIONS = 16
BATCH = 100


def api(place: Place, sizes: Sizes) -> list[Measured]:
    """Each event is for one of thousands of subscriptions, over sixteen connections.

    First by `publish()` alone, from as many processes as the web has, and as many threads as there
    are connections later.
    """
    targets = to_each(sizes.narrow_subscriptions)
    with trial(place) as bench:
        receiver, first = subscribed(bench, sizes.narrow_subscriptions, OWN)
        others = [bench.publisher(f"publisher {n}") for n in range(2, WEB_PROCESSES + 1)]
        publishers = [first, *others]
        bench.start_workers()
        host, port = bench.start_web()
        caller = bench.caller(host, port, first.ask(do="make_key")["key"])
        for each in publishers:
            warm_up(bench, receiver, each, **targets)
        for more in ({}, {"batch": BATCH}):
            warm_up(bench, receiver, caller, **targets, connections=CONNECTIONS, **more)
        single = {**targets, "events": sizes.narrow_in_threads}
        hundreds = {**targets, "events": sizes.narrow_in_hundreds, "batch": BATCH}
        threads = CONNECTIONS // WEB_PROCESSES
        found = [
            run_phase(bench, "publish alone", receiver, *publishers, **single, threads=threads),
            run_phase(bench, "api", receiver, caller, **single, connections=CONNECTIONS),
            run_phase(
                bench, "api, in hundreds", receiver, caller, **hundreds, connections=CONNECTIONS
            ),
        ]
        found[1].figures.update(_nothing(bench, sizes.narrow_in_threads))
        rows = bench.rows()
        for measured in found:
            measured.figures.update(rows)
    return found


def _nothing(bench: Trial, requests: int) -> dict[str, float]:
    """The web server with an application that does nothing, asked by the same program."""
    caller = bench.caller(*bench.start_web("idle web", idle=True), "whk_nothing", "idle caller")
    caller.ask(do="nothing", events=requests // 10, connections=CONNECTIONS)
    before = bench.cpu()
    said = caller.ask(do="nothing", events=requests, connections=CONNECTIONS)
    spent = bench.cpu_since(before)
    return {
        "nothing_rate": requests / (said["ended"] - said["began"]),
        "nothing_p50": said["publish_p50"],
        "nothing_p99": said["publish_p99"],
        "nothing_web": spent["idle web"] / requests,
        "nothing_caller": spent["idle caller"] / requests,
    }
