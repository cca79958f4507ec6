"""The metrics in the words of Prometheus. Every web process gives the same ones.

No label names a subscription, a tenant, a topic or a host: their number has no bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from deliveries.monitoring.asking import Kept, ask
from deliveries.monitoring.buckets import ARRIVAL_BOUNDS, ATTEMPT_BOUNDS
from deliveries.monitoring.counts import Sums, read_sums
from deliveries.monitoring.sweeps import seconds_since_sweep
from deliveries.monitoring.tables import Tables, read_tables

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# How long a source is waited for, and how long a page is given to others, in seconds.
TIMEOUT = 2.0
KEPT = 5.0

_SOURCES: Mapping[str, Callable[[], Any]] = {
    "tables": read_tables,
    "redis": read_sums,
    "sweep": seconds_since_sweep,
}
# So that each of these is there before it happens for the first time.
_DELIVERY_OUTCOMES = ("succeeded", "failed", "retried", "held")
_ATTEMPT_OUTCOMES = ("success", "http")
NOTICES = ("tripped", "recovered", "degraded", "still_tripped", "held_expiring", "fuse_blown")


def _labelled(kind: Any, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family: Metric = kind(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)  # type: ignore[attr-defined]
    return family


def _histogram(
    name: str, text: str, milliseconds: dict[str, int], bounds: tuple[int, ...]
) -> Metric:
    buckets, total = [], 0
    for bound in bounds:
        total += milliseconds.get(str(bound), 0)
        buckets.append((repr(bound / 1000), total))
    buckets.append(("+Inf", total + milliseconds.get("inf", 0)))
    return HistogramMetricFamily(name, text, buckets, milliseconds.get("sum", 0) / 1000)


def _of_tables(tables: Tables) -> Iterator[Metric]:
    yield _labelled(
        GaugeMetricFamily, "webhooks_subscriptions", "Subscriptions.", "state",
        tables.subscriptions,
    )  # fmt: skip
    yield GaugeMetricFamily(
        "webhooks_subscriptions_failing", "Active subscriptions that fail.", tables.failing
    )
    yield _labelled(
        GaugeMetricFamily, "webhooks_queue_deliveries",
        "Deliveries that wait: due now, due later, or held. An estimate beyond 100,000.", "status",
        {"due": tables.due, "later": tables.later, "held": tables.held},
    )  # fmt: skip
    yield GaugeMetricFamily(
        "webhooks_oldest_due_seconds",
        "Since when the oldest delivery is due that nobody is sending and that does not back off.",
        tables.oldest_due,
    )
    yield GaugeMetricFamily(
        "webhooks_oldest_transaction_seconds",
        "For how long the oldest transaction on the database has been open.",
        tables.oldest_transaction,
    )
    yield GaugeMetricFamily(
        "webhooks_notices_waiting",
        "Notices that a channel has not taken, and is offered again.",
        tables.notices_waiting,
    )
    yield GaugeMetricFamily(
        "webhooks_fuse_blown", "1 while the fuse is blown.", int(tables.fuse_blown)
    )


def _of_redis(sums: Sums) -> Iterator[Metric]:
    yield _labelled(
        CounterMetricFamily, "webhooks_deliveries",
        "What attempts made of their deliveries.", "outcome",
        dict.fromkeys(_DELIVERY_OUTCOMES, 0) | sums.of("delivery"),
    )  # fmt: skip
    yield _labelled(
        CounterMetricFamily, "webhooks_attempts", "Attempts, by outcome.", "outcome",
        dict.fromkeys(_ATTEMPT_OUTCOMES, 0) | sums.of("attempt"),
    )  # fmt: skip
    yield _histogram(
        "webhooks_attempt_seconds", "Time of an attempt.", sums.of("attempt_ms"), ATTEMPT_BOUNDS
    )
    yield _histogram(
        "webhooks_arrival_seconds",
        "From publish to arrival, of deliveries that arrived at the first attempt and were not "
        "held.",
        sums.of("arrival_ms"),
        ARRIVAL_BOUNDS,
    )
    yield CounterMetricFamily(
        "webhooks_trips", "Circuits that tripped.", sums.counts.get("trips", 0)
    )
    notices = CounterMetricFamily(
        "webhooks_notices",
        "Notices that were told, by what they tell of and by channel.",
        labels=["kind", "channel"],
    )
    none = {f"{kind} {channel}": 0 for kind in NOTICES for channel in ("event", "signal")}
    for name, number in (none | sums.of("notice")).items():
        notices.add_metric(name.split(" "), number)
    yield notices
    yield CounterMetricFamily(
        "webhooks_resets", "Tripped circuits that were reset.", sums.counts.get("resets", 0)
    )
    yield _labelled(
        CounterMetricFamily, "webhooks_wake_ups", "Subscriptions that were woken.", "queue",
        sums.wake_ups,
    )  # fmt: skip
    yield _labelled(
        GaugeMetricFamily, "webhooks_due_set_subscriptions",
        "Subscriptions that were woken and that no worker has taken.", "queue", sums.waiting,
    )  # fmt: skip


class _Page:
    """What a registry is to `generate_latest`."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        up = {name: int(not isinstance(answer, Exception)) for name, answer in self._found.items()}
        yield _labelled(
            GaugeMetricFamily, "webhooks_source_up",
            "0 if metrics are missing because the source does not answer.", "source",
            {name: up[name] for name in ("tables", "redis")},
        )  # fmt: skip
        if up["tables"]:
            yield from _of_tables(self._found["tables"])
        if up["redis"]:
            yield from _of_redis(self._found["redis"])
        if up["sweep"] and self._found["sweep"] is not None:
            yield GaugeMetricFamily(
                "webhooks_sweep_lag_seconds", "Since the last sweep ended.", self._found["sweep"]
            )


def _make() -> bytes:
    page: Any = _Page(ask(_SOURCES, TIMEOUT))
    return generate_latest(page)


_kept = Kept(_make, KEPT)


def metrics_page() -> bytes:
    """All metrics as text, at most five seconds old. What cannot be asked is left out."""
    return _kept.get()
