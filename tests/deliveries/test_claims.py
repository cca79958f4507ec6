"""Claims that cross each other."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from deliveries import publish
from deliveries.claiming import claims
from deliveries.claiming.bodies import EventBodies
from deliveries.claiming.claims import claim
from deliveries.models import Attempt, Lane
from deliveries.sending.worker import Sender
from subscriptions import database as prepared
from tests.deliveries.conftest import Script
from tests.factories import make_subscription, statuses
from tests.webhooks_project.waiting import eventually
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_wake_up_is_not_lost_on_a_claim_that_finds_nothing_and_is_about_to_leave(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {"n": 1})
    read, leave, left = claims._take_singly, claims.leave, []

    def after_somebody_else_took_it(cursor: Any, lanes: dict[Any, Any], *others: Any) -> None:
        for lane in lanes.values():
            lane.deliveries.clear()
        read(cursor, lanes, *others)

    def after_a_wake_up(cursor: Any, ids: Any, token: uuid.UUID) -> Any:
        left.append(token)
        monkeypatch.setattr(claims, "_take_singly", read)
        publish("test.one", {"n": 2})
        crossing = claim(ids, EventBodies(), str, token=uuid.uuid4(), failing_too=False)
        assert crossing.lanes == []
        return leave(cursor, ids, token)

    monkeypatch.setattr(claims, "_take_singly", after_somebody_else_took_it)
    monkeypatch.setattr(claims, "leave", after_a_wake_up)
    sender.serve([subscription.pk], recovering=False)
    assert len(left) == 1
    assert statuses(subscription) == {"succeeded": 2}


def test_a_lane_with_nothing_due_is_not_even_taken(sender: Sender, receiver: Receiver) -> None:
    subscription = make_subscription(url=receiver.url)
    sender.serve([subscription.pk], recovering=False)
    assert not Lane.objects.exists()


def test_a_claim_that_fails_takes_nothing_along(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one subscription, the others of the batch wait for no lease."""
    bad, good = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    publish("test.one", {})
    read = claims._lane

    def fails_for_one(row: Any, decrypt: Any) -> Any:
        if row.subscription_id == bad.pk:
            raise RuntimeError("a mistake of our own")
        return read(row, decrypt)

    with monkeypatch.context() as broken:
        broken.setattr(claims, "_lane", fails_for_one)
        sender.serve([bad.pk, good.pk], recovering=False)
    assert (statuses(bad), statuses(good)) == ({"pending": 1}, {"succeeded": 1})
    sender.serve([bad.pk], recovering=False)
    assert statuses(bad) == {"succeeded": 1}
    assert set(Attempt.objects.values_list("outcome", flat=True)) == {"success"}


def test_sending_without_prepared_statements(
    sender: Sender, receiver: Receiver, script: Script, configure: Callable[..., None]
) -> None:
    """As behind PgBouncer in transaction mode."""
    configure(prepared_statements=False)
    subscription = make_subscription(url=receiver.url)
    publish("test.one", {})
    publish("test.one", {})
    script.answers = [Answer(200), Answer(410)]
    sender.serve([subscription.pk], recovering=False)
    subscription.refresh_from_db()
    assert subscription.state == "tripped"
    assert statuses(subscription) == {"succeeded": 1, "failed": 1}


def test_a_connection_is_given_back_as_it_came() -> None:
    def settings_found() -> list[str]:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('lock_timeout'), current_setting('enable_seqscan')"
            )
            return list(cursor.fetchone())

    def as_a_stage_does() -> None:
        prepared.own_connection()
        with prepared.worker_cursor():
            seen.append(settings_found())
        raw = connection.connection
        close, connection.close = connection.close, lambda: None  # type: ignore[method-assign]
        try:
            prepared.give_back_connection()
        finally:
            connection.close = close  # type: ignore[method-assign]
        assert connection.connection is raw
        seen.append(settings_found())
        raw.close()
        prepared.give_back_connection()  # one that is broken is no error

    seen: list[list[str]] = []
    thread = threading.Thread(target=as_a_stage_does)
    thread.start()
    thread.join()
    assert seen == [["200ms", "off"], ["0", "on"]]


def test_a_lane_that_is_locked_when_a_claim_leaves_it_is_left_a_little_later(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a wake-up that was marked meanwhile is heard: it is not leased for half a minute."""
    empty, other = make_subscription(url=receiver.url), make_subscription(url=receiver.url)
    publish("test.one", {})
    read, later = claims._take_singly, sender._leave_later
    locked: list[Any] = []

    def after_somebody_locked_an_empty_lane(
        cursor: Any, lanes: dict[Any, Any], *others: Any
    ) -> None:
        lanes[empty.pk].deliveries.clear()
        holder = connection.copy()
        holder.set_autocommit(False)
        with holder.cursor() as at_the_lane:
            at_the_lane.execute(
                "UPDATE deliveries_lane SET wake_again = true WHERE subscription_id = %s",
                [empty.pk],
            )
        locked.append(holder)
        monkeypatch.setattr(claims, "_take_singly", read)
        read(cursor, lanes, *others)

    def when_it_is_unlocked(*arguments: Any) -> None:
        locked[0].commit()
        locked[0].close()
        later(*arguments)

    monkeypatch.setattr(claims, "_take_singly", after_somebody_locked_an_empty_lane)
    monkeypatch.setattr(sender, "_leave_later", when_it_is_unlocked)
    sender.serve([empty.pk, other.pk], recovering=False)
    assert statuses(other) == {"succeeded": 1}
    eventually(lambda: Lane.objects.filter(pk=empty.pk, lease_token=None).exists())
    # Its one delivery is still leased, as if taken by somebody who died: only the lane is free.
    assert statuses(empty) == {"pending": 1}
