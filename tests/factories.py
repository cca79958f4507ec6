"""Rows for tests."""

from __future__ import annotations

import itertools
from typing import Any

from deliveries.models import Delivery
from subscriptions import circuit
from subscriptions.models import Subscription, create_subscription

_numbers = itertools.count(1)


def make_subscription(**fields: Any) -> Subscription:
    """A valid subscription with a secret; its URL is never dialled unless the test serves it."""
    return make_subscription_with_secret(**fields)[0]


def make_subscription_with_secret(**fields: Any) -> tuple[Subscription, str]:
    number = next(_numbers)
    return create_subscription(
        **{
            "name": f"receiver {number}",
            "url": f"https://receiver-{number}.example.com/hook",
            "topic_patterns": ["test.>"],
            **fields,
        }
    )


def failure_report(subscription: Subscription, times: int, **fields: Any) -> circuit.Report:
    """What the circuit is told of so many attempts in a row that were answered with a 500."""
    return circuit.Report(
        subscription.pk,
        subscription.circuit_epoch,
        circuit.tally([False] * times),
        error="500 Internal Server Error: out of order",
        failed=True,
        answered=True,
        status_code=500,
        snippet="out of order",
        **fields,
    )


def statuses(subscription: Subscription) -> dict[str, int]:
    """How many deliveries of the subscription there are in each status."""
    found: dict[str, int] = {}
    for status in Delivery.objects.filter(subscription=subscription).values_list(
        "status", flat=True
    ):
        found[status] = found.get(status, 0) + 1
    return found
