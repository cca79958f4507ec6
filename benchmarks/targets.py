"""What each scenario must reach, and whether it did. Pure functions on results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from limit import Limit
from machine import Machine
from phase import Measured


@dataclass
class Results:
    """All that one run measured. `reference` and `ours` are by scenario."""

    machine: Machine
    when: str
    quick: bool
    seconds: float = 0.0
    limit: Limit | None = None
    reference: dict[str, Measured] = field(default_factory=dict)
    ours: dict[str, Measured] = field(default_factory=dict)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Results:
        """From `dataclasses.asdict`, as it is kept in a file."""
        return cls(
            **{
                **values,
                "machine": Machine(**values["machine"]),
                "limit": Limit(**values["limit"]) if values["limit"] else None,
                "reference": {k: Measured(**one) for k, one in values["reference"].items()},
                "ours": {k: Measured(**one) for k, one in values["ours"].items()},
            }
        )

    def called(self, name: str) -> Measured | None:
        """Ours of that name, with or without a number before it."""
        return next(
            (one for key, one in self.ours.items() if key == name or key.endswith(f"0 {name}")),
            None,
        )

    @property
    def exact(self) -> bool:
        """Nothing is missing, and nothing came twice, anywhere."""
        return all(one.exact for one in [*self.ours.values(), *self.reference.values()])


@dataclass(frozen=True)
class Target:
    """A demand on a scenario, with what was measured; `scenario` is the key in `Results.ours`."""

    scenario: str
    wanted: str
    measured: str
    met: bool


# Scenario, the reference's scenario, how many times its rate.
_TIMES = (
    ("backlog", "backlog", 80),
    ("wide", "wide", 60),
    ("live", "live", 40),
    ("narrow", "narrow", 5),
    ("narrow, 8 threads", "narrow", 12),
    ("narrow, in hundreds", "narrow", 30),
)
_LIMIT_SHARE = 0.30
# Scenario, figure, what it is, how much at most, in which unit of so many base units.
_AT_MOST = (
    ("wide", "publish_p50", "p50 of `publish`", 100, "ms", 1e-3),
    ("latency", "latency_p50", "p50", 4, "ms", 1e-3),
    ("latency", "latency_p99", "p99", 10, "ms", 1e-3),
    ("matches", "others_longest", "events for others arrive within", 2, "s", 1),
)
# Milliseconds of processor time an event may cost, all programs together.
_PROCESSOR = (("narrow", 2.5), ("narrow, 8 threads", 1.5), ("latency", 4.0))
_API_SHARE = 0.4
_API_IN_HUNDREDS = 2500
# How many times the rate of *wide*, and its memory, within what one run differs from the next.
_RATE_OF_WIDE = 0.9
_MEMORY_OF_WIDE = 1.5


def targets(results: Results) -> list[Target]:
    """Every demand whose scenario was run, in the order of the scenarios."""
    order = list(results.ours)
    found = [*_ratios(results), *_bounds(results), *_comparisons(results)]
    return sorted(found, key=lambda one: order.index(one.scenario))


def _ratios(results: Results) -> Iterator[Target]:
    for name, against, wanted in _TIMES:
        if name in results.ours and against in results.reference:
            mine, other = results.ours[name].rate, results.reference[against].rate
            ratio = mine / other if other else 0.0
            yield Target(name, f"≥ {wanted} × the reference", f"{ratio:.1f} ×", ratio >= wanted)
    if results.limit is not None and "backlog" in results.ours:
        share = results.ours["backlog"].rate / results.limit.rate
        yield Target(
            "backlog", f"≥ {_LIMIT_SHARE:.2f} of the limit", f"{share:.2f}", share >= _LIMIT_SHARE
        )
    if "api" in results.ours:
        alone = results.ours["publish alone"].rate
        share = results.ours["api"].rate / alone if alone else 0.0
        wanted = f"≥ {_API_SHARE} × publish() in as many processes"
        yield Target("api", wanted, f"{share:.2f} ×", share >= _API_SHARE)
        rate = results.ours["api, in hundreds"].rate
        wanted = f"≥ {_API_IN_HUNDREDS:,} a second"
        yield Target("api, in hundreds", wanted, f"{rate:,.0f}", rate >= _API_IN_HUNDREDS)
    wide, many = results.ours.get("wide"), results.called("matches")
    if wide is not None and many is not None:
        rate = many.rate / wide.rate if wide.rate else 0.0
        memory = many.figures["worker_memory"] / wide.figures["worker_memory"]
        yield Target(
            many.scenario,
            f"≥ {_RATE_OF_WIDE} × the rate of wide",
            f"{rate:.2f} ×",
            rate >= _RATE_OF_WIDE,
        )
        yield Target(
            many.scenario,
            f"≤ {_MEMORY_OF_WIDE} × the worker's memory of wide",
            f"{memory:.2f} ×",
            memory <= _MEMORY_OF_WIDE,
        )


def _bounds(results: Results) -> Iterator[Target]:
    for name, figure, what, limit, unit, size in _AT_MOST:
        if (measured := results.called(name)) is not None:
            value = measured.figures[figure] / size
            yield Target(
                measured.scenario, f"{what} ≤ {limit} {unit}", f"{value:.1f} {unit}", value <= limit
            )
    for name, bound in _PROCESSOR:
        if (measured := results.called(name)) is not None:
            value = 1000 * sum(measured.cpu.values()) / measured.deliveries
            yield Target(name, f"≤ {bound} ms of CPU each", f"{value:.1f} ms", value <= bound)


def _comparisons(results: Results) -> Iterator[Target]:
    for name, figure, what, least, limit in (
        ("observed", "cpu", "CPU of a delivery", None, 1.05),
        ("skewed", "others_p99", "p99 of the others", None, 1.3),
        ("tenants", "quiet_p99", "p99 of the other tenant", None, 1.3),
        ("tenants, steady", "quiet_p99", "p99 of the other tenant", None, 1.3),
        ("slow", "rate", "rate of the healthy", 0.9, None),
        ("slow", "healthy_p99", "p99 of the healthy", None, 1.3),
    ):
        if name not in results.ours:
            continue
        figures = results.ours[name].figures
        ratio = figures[f"{figure}_with"] / figures[f"{figure}_without"]
        wanted = f"≥ {least}" if least is not None else f"≤ {limit}"
        met = ratio >= least if least is not None else ratio <= (limit or 0.0)
        yield Target(name, f"{what} {wanted} × without", f"{ratio:.2f} ×", met)
    one = results.ours.get("scale out, 1")
    for workers in (2, 4):
        many = results.ours.get(f"scale out, {workers}")
        if one is not None and many is not None:
            share = many.rate / (workers * one.rate) if one.rate else 0.0
            yield Target(many.scenario, "≥ 0.85 of linear", f"{share:.2f}", share >= 0.85)
