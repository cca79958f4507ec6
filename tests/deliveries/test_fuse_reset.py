"""A failing subscription that answers again resets the fuse, whoever is in the way."""

from __future__ import annotations

import pytest
from django.db import connection, transaction
from django.utils import timezone

from deliveries import publish
from deliveries.sending.sender import Sender
from subscriptions.circuit import fuse
from subscriptions.models import Subscription, TripFuse
from subscriptions.signals import fuse_reset
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Receiver

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def recovering(receiver: Receiver, sender: Sender) -> Subscription:
    """It failed, the fuse is blown, and what it gets next will arrive."""
    subscription = make_subscription(url=receiver.url)
    Subscription.objects.filter(pk=subscription.pk).update(
        consecutive_failures=3, failing_by_network=True
    )
    TripFuse.objects.update_or_create(pk=1, defaults={"blown_at": timezone.now()})
    publish("test.one", {})
    return subscription


def test_a_success_resets_it(recovering: Subscription, sender: Sender) -> None:
    told: list[bool] = []

    def was_reset(**_: object) -> None:
        told.append(True)

    fuse_reset.connect(was_reset)
    sender.serve([recovering.pk], recovering=True)
    assert statuses(recovering) == {"succeeded": 1}
    eventually(lambda: not fuse.blown())
    assert eventually(lambda: told) == [True]


def test_a_success_is_settled_even_while_somebody_who_trips_holds_it(
    recovering: Subscription, sender: Sender
) -> None:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT FROM subscriptions_tripfuse FOR UPDATE")
        sender.serve([recovering.pk], recovering=True)
        assert statuses(recovering) == {"succeeded": 1}
        assert fuse.blown()
    eventually(lambda: not fuse.blown())
