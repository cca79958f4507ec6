"""The tables of a run, in Markdown: for the terminal, and for `docs/performance.md`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from phase import Measured
from targets import Results, Target, targets


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with its columns in line."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = [
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([texts[0], rule, *texts[1:]])


def scenarios(results: Results) -> str:
    """One row for each demand; the counts of a scenario stand in its first row."""
    demands = targets(results)
    rows = []
    for name, measured in results.ours.items():
        mine = [one for one in demands if one.scenario == name]
        rows.append([name, *counts(measured), *_demand(mine[0] if mine else None)])
        rows += [["", *[""] * 4, *_demand(one)] for one in mine[1:]]
    head = ["scenario", "deliveries", "a second", "missing", "duplicates"]
    return table([*head, "must reach", "reached", ""], rows)


def counts(measured: Measured) -> list[str]:
    """Deliveries, rate, missing, duplicates."""
    return [
        f"{measured.deliveries:,}",
        f"{measured.rate:,.0f}",
        f"{measured.missing:,}",
        f"{measured.duplicates + measured.unexpected:,}",
    ]


def _demand(target: Target | None) -> list[str]:
    if target is None:
        return ["", "", ""]
    return [target.wanted, target.measured, "yes" if target.met else "**no**"]


def others(results: Results) -> str:
    """The reference package and the limit."""
    rows = [
        [
            f"{one.side}, {name}",
            *counts(one),
            f"{sum(one.cpu.values()) / one.deliveries * 1e6:,.0f}",
        ]
        for name, one in results.reference.items()
    ]
    if (limit := results.limit) is not None:
        for name, seconds in (
            ("libcurl alone", limit.post),
            ("`COPY` alone", limit.copy),
            ("the limit: both at once", limit.both),
        ):
            rate = f"{limit.deliveries / seconds:,.0f}"
            rows.append([name, f"{limit.deliveries:,}", rate, "", "", ""])
    return table(
        ["measured in the same run", "deliveries", "a second", "missing", "duplicates", "CPU µs"],
        rows,
    )


def processor(results: Results) -> str:
    """Microseconds of processor time for each delivery, by program; and how many cores that was."""
    groups = (
        "publisher",
        "caller",
        "web",
        "worker",
        "recover",
        "beat",
        "PostgreSQL",
        "Valkey",
        "receiver",
    )
    rows = []
    for name, measured in results.ours.items():
        by_group = dict.fromkeys(groups, 0.0)
        for program, seconds in measured.cpu.items():
            by_group[next(group for group in groups if group in program)] += seconds
        spent = [1e6 * by_group[group] / measured.deliveries for group in groups]
        busy = [
            f"{seconds / measured.seconds:.2f}" if measured.seconds else ""
            for seconds in (by_group["worker"], sum(by_group.values()))
        ]
        rows.append([name, *(f"{value:,.0f}" for value in [*spent, sum(spent)]), *busy])
    head = ["CPU µs for each delivery", *groups, "all", "cores: worker", "cores: all"]
    return table(head, rows)


def waits(results: Results) -> str:
    """Milliseconds, where events were published while the workers ran."""
    names = ("publish_p50", "publish_p99", "publish_longest", "latency_p50", "latency_p99")
    rows = [
        [name, *(f"{1000 * one.figures[figure]:,.1f}" for figure in names)]
        for name, one in results.ours.items()
        if "latency_p50" in one.figures
    ]
    head = ["milliseconds", *(name.replace("_", " ") for name in names)]
    return table(head, rows)


def nothing(results: Results) -> str:
    """The web server alone, beside what it does in *api*."""
    if (one := results.ours.get("api")) is None:
        return ""
    figures = one.figures
    seconds = figures["publishing_seconds"]
    rows = [
        [
            name,
            f"{rate:,.0f}",
            *(f"{1000 * figures[f'{prefix}_{which}']:,.1f}" for which in ("p50", "p99")),
            f"{1e6 * web:,.0f}",
            f"{1e6 * caller:,.0f}",
        ]
        for name, rate, prefix, web, caller in (
            (
                "`POST /events`",
                one.deliveries / seconds,
                "publish",
                one.cpu["web"] / one.deliveries,
                one.cpu["caller"] / one.deliveries,
            ),
            (
                "the server, doing nothing",
                figures["nothing_rate"],
                "nothing",
                figures["nothing_web"],
                figures["nothing_caller"],
            ),
        )
    ]
    return table(["requests", "a second", "p50, ms", "p99, ms", "web, µs", "caller, µs"], rows)


def storage(results: Results) -> str:
    """What a delivery costs PostgreSQL, with its event; rows are averages over a trial."""
    rows = []
    for name, one in results.ours.items():
        if "rows_inserted" not in one.figures:
            continue
        inserted, updated, hot, dead = (
            one.figures[f"rows_{what}"] for what in ("inserted", "updated", "updated_hot", "dead")
        )
        rows.append(
            [
                name,
                f"{one.figures['wal_bytes'] / one.deliveries:,.0f}",
                f"{inserted:.2f}",
                f"{updated:.2f}",
                f"{100 * hot / updated:.0f} %" if updated else "",
                f"{dead:.2f}",
                f"{one.figures['worker_memory'] / 2**20:.0f}",
            ]
        )
    head = [
        "for each delivery",
        "bytes of WAL",
        "rows inserted",
        "rows updated",
        "of them in place",
    ]
    return table([*head, "dead rows left", "worker, MiB"], rows)
