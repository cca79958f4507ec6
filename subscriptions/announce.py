"""Says what the circuits did: a line in the log and a public signal for each, after the commit.

Stands above the models: the circuit deals in ids, receivers of the signals get subscriptions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from django.dispatch import receiver

from subscriptions import signals
from subscriptions.models import Subscription

logger = logging.getLogger(__name__)


@receiver(signals.subscriptions_tripped)
def _on_trip(*, subscription_ids: list[UUID], **_: Any) -> None:
    _announce(subscription_ids, _tripped)


@receiver(signals.subscriptions_enabled)
def _on_enable(*, subscription_ids: list[UUID], tripped_ids: list[UUID], **_: Any) -> None:
    _announce(tripped_ids, _reset)
    _announce(list(set(subscription_ids) - set(tripped_ids)), _resumed)


@receiver(signals.subscriptions_stopped)
def _on_pause(*, subscription_ids: list[UUID], **_: Any) -> None:
    _announce(subscription_ids, _paused)


def _announce(subscription_ids: list[UUID], each: Callable[[Subscription], None]) -> None:
    if subscription_ids:
        signals.after_commit(partial(_announce_each, subscription_ids, each))


def _announce_each(subscription_ids: list[UUID], each: Callable[[Subscription], None]) -> None:
    for subscription in Subscription.objects.filter(pk__in=subscription_ids):
        each(subscription)


def _tripped(subscription: Subscription) -> None:
    logger.warning(
        "The circuit of subscription %s (%s) tripped after %d %s in a row; its "
        "deliveries are held. Last error: %s",
        subscription.name,
        subscription.pk,
        subscription.consecutive_failures,
        "failure" if subscription.consecutive_failures == 1 else "failures",
        signals.one_line(subscription.last_error),
    )
    signals.circuit_tripped.send_robust(sender=Subscription, subscription=subscription)


def _reset(subscription: Subscription) -> None:
    logger.info(
        "The circuit of subscription %s (%s) was reset; it is active again.",
        subscription.name,
        subscription.pk,
    )
    signals.circuit_reset.send_robust(sender=Subscription, subscription=subscription)


def _paused(subscription: Subscription) -> None:
    logger.info(
        "Subscription %s (%s) was paused; what is pending is held.",
        subscription.name,
        subscription.pk,
    )


def _resumed(subscription: Subscription) -> None:
    logger.info("Subscription %s (%s) was resumed.", subscription.name, subscription.pk)
