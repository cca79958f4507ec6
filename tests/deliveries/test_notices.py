"""Notices: told once, by every channel, to whoever should hear of it, and never in a circle."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core import mail
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from deliveries import publish
from deliveries.keeping.housekeeping import expire_held, prune
from deliveries.management.commands.audit import Command as AuditCommand
from deliveries.models import Delivery, Event
from deliveries.monitoring.counts import counts
from deliveries.notices import wording
from deliveries.notices.telling import tell_due
from deliveries.notices.watching import watch
from deliveries.tasks import sweep
from subscriptions import audit, circuit, signals
from subscriptions.circuit import Report, tally
from subscriptions.models import AuditEntry, Subscription
from subscriptions.topics.rules import InvalidTopic
from tests.commands import refusal, run, run_json
from tests.factories import failure_report, make_subscription
from tests.mail import MailServer

pytestmark = pytest.mark.django_db(transaction=True)

TRIPPED = "system.webhooks.subscription.tripped"
SEND_TASK = "celery.app.base.Celery.send_task"


@pytest.fixture(autouse=True)
def prompted(monkeypatch: pytest.MonkeyPatch, ordered: Any) -> list[str]:
    """The tasks that would have been sent."""
    sent: list[str] = []
    # Of the class: what is put back on an object stays there as its own, and hides the class's.
    monkeypatch.setattr(SEND_TASK, lambda _, name, **__: sent.append(name))
    return sent


@pytest.fixture
def mailed(configure: Callable[..., None]) -> None:
    configure(notice_emails=("ops@example.com",), base_url="https://hooks.example.com")


def fail(*subscriptions: Subscription, times: int = 5) -> None:
    for one in subscriptions:
        one.refresh_from_db()
        with transaction.atomic():
            circuit.record([failure_report(one, times)])


def reached() -> dict[str, set[str]]:
    """Names of the subscriptions that have a delivery, by the topic of its event."""
    names = dict(Subscription.objects.values_list("pk", "name"))
    found: dict[str, set[str]] = {}
    for delivery in Delivery.objects.select_related("event"):
        found.setdefault(delivery.event.topic, set()).add(names[delivery.subscription_id])
    return found


def payload(topic: str = TRIPPED) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(Event.objects.get(topic=topic).body))["payload"]
    return found


def test_a_trip_is_told_by_event_signal_and_mail(mailed: None, prompted: list[str]) -> None:
    billing = make_subscription(name="billing")
    make_subscription(name="pager", topic_patterns=["system.webhooks.>"])
    heard: list[Any] = []

    def hear(entry: AuditEntry, kind: str, **_: Any) -> None:
        heard.append((kind, entry.subscription_name))

    signals.notice.connect(hear)
    try:
        fail(billing)
        assert prompted == ["deliveries.tasks.tell"]
        assert tell_due() == 1
        assert tell_due() == 0
    finally:
        signals.notice.disconnect(hear)
    assert heard == [("tripped", "billing")]
    assert reached() == {TRIPPED: {"pager"}}
    told = payload()
    assert told["kind"] == "tripped"
    assert told["subscription"] == {"id": str(billing.pk), "name": "billing", "tenant": ""}
    assert told["reason"] == "500 Internal Server Error: out of order"
    assert told["status_code"] == 500
    assert told["snippet"] == "out of order"
    assert told["first_failure_at"] < told["at"]
    link = f"https://hooks.example.com/admin/subscriptions/subscription/{billing.pk}/change/"
    assert told["link"] == link
    (message,) = mail.outbox
    assert message.subject == "[webhooks] billing has tripped; its deliveries are held"
    assert message.to == ["ops@example.com"]
    for part in ("500 Internal Server Error", "Status:", "First failure:", "out of order", link):
        assert part in message.body
    entry = AuditEntry.objects.get(action="tripped")
    assert entry.told == ["event", "signal", "mail"]
    assert entry.notified_at is not None
    assert entry.notify_at is None


def test_many_that_trip_at_once_are_one_mail(mailed: None) -> None:
    fail(*(make_subscription(name=f"one\r\nBcc: x@example.com {n}"[:3] + str(n)) for n in range(7)))
    tell_due()
    (message,) = mail.outbox
    assert message.subject == "[webhooks] 7 notices: 7 tripped"
    assert AuditEntry.objects.exclude(notified_at=None).count() == 7


def test_twenty_who_tell_at_once_tell_once(mailed: None, at_once: Callable[..., Any]) -> None:
    make_subscription(name="pager", topic_patterns=["system.>"])
    fail(*(make_subscription() for _ in range(9)))
    assert sum(at_once(lambda _: tell_due(), 20)) == 9
    assert Event.objects.filter(topic=TRIPPED).count() == 9
    assert sum(message.body.count("Subscription: ") for message in mail.outbox) == 9


def test_a_recovery_and_a_reset_are_told_as_the_end_of_the_trip(mailed: None) -> None:
    make_subscription(name="pager", topic_patterns=["system.webhooks.subscription.recovered"])
    billing = make_subscription(name="billing")
    fail(billing)
    billing.refresh_from_db()
    circuit.reset([billing.pk], epoch=billing.circuit_epoch)
    fail(billing)
    with audit.acting("alice", "admin"):
        circuit.reset([billing.pk])
    tell_due()
    topic = "system.webhooks.subscription.recovered"
    reasons = [
        json.loads(bytes(event.body))["payload"]["reason"]
        for event in Event.objects.filter(topic=topic).order_by("created_at")
    ]
    assert reasons == ["a probe succeeded", "reset by alice (Admin)"]
    assert reached() == {topic: {"pager"}}


def test_a_first_sign_is_told_before_the_trip() -> None:
    make_subscription(name="pager", topic_patterns=["system.>"])
    fail(make_subscription(name="billing"), times=3)
    tell_due()
    topic = "system.webhooks.subscription.degraded"
    assert reached() == {topic: {"pager"}}
    assert (payload(topic)["failures"], payload(topic)["threshold"]) == (3, 5)


def test_what_is_still_tripped_after_a_day_is_told_once() -> None:
    billing = make_subscription(name="billing")
    fail(billing)
    assert watch() == 0
    before = timezone.now() - timedelta(hours=25)
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE subscriptions_subscription SET auto_disabled_at = %s WHERE id = %s",
            [before, billing.pk],
        )
    AuditEntry.objects.update(at=before)
    assert watch() == 1
    assert watch() == 0
    tell_due()
    assert payload("system.webhooks.subscription.still_tripped")["tripped_at"] == before.isoformat()


def test_held_deliveries_that_expire_soon_are_told_once_a_stop(
    configure: Callable[..., None],
) -> None:
    configure(hold_days=7)
    paused, tripped, fresh = (make_subscription(name=name) for name in ("a", "b", "c"))
    for number in range(3):
        publish("test.one", {"n": number})
    circuit.pause([paused.pk, fresh.pk])
    fail(tripped)
    from deliveries.holding import hold

    hold([tripped.pk])
    old = timezone.now() - timedelta(days=6, hours=1)
    Delivery.objects.exclude(subscription=fresh).update(held_at=old)
    assert expire_held() == 0
    assert expire_held() == 0
    entries = AuditEntry.objects.filter(action="held_expiring")
    assert {entry.subscription_name for entry in entries} == {"a", "b"}
    for entry in entries:
        assert entry.detail["count"] == 3
        assert entry.detail["first_expires_at"] == (old + timedelta(days=7)).isoformat()
    tell_due()
    assert Event.objects.filter(topic="system.webhooks.subscription.held_expiring").count() == 2


def test_the_fuse_is_told(mailed: None) -> None:
    make_subscription(name="pager", topic_patterns=["system.webhooks.fuse.blown"])
    audit.record(
        "fuse_blown",
        [audit.Entry(detail={"tripping": 11, "active": 12, "window_seconds": 300})],
        by_system=True,
        notify=True,
    )
    tell_due()
    assert reached() == {"system.webhooks.fuse.blown": {"pager"}}
    assert "11 of 12 could not be reached" in mail.outbox[0].body


# Whom events reach.


def test_a_plain_wildcard_does_not_begin_to_receive_system_events() -> None:
    for name, patterns in {
        "all": [">"],
        "star": ["*.webhooks.subscription.tripped", "*.>", "*.*.*.*"],
        "literal": ["system.*.subscription.*"],
    }.items():
        make_subscription(name=name, topic_patterns=patterns)
    fail(make_subscription())
    tell_due()
    assert reached() == {TRIPPED: {"literal"}}


def test_a_tenants_trip_is_told_to_the_tenant_and_to_those_for_all() -> None:
    for name, fields in {
        "acme's": {"tenant": "acme"},
        "umbrella's": {"tenant": "umbrella"},
        "ours": {},
        "all": {"all_tenants": True},
    }.items():
        make_subscription(name=name, topic_patterns=["system.>"], **fields)
    fail(make_subscription(tenant="acme", name="billing"))
    tell_due()
    assert reached() == {TRIPPED: {"acme's", "all"}}
    assert Event.objects.get().tenant == "acme"


def test_the_failing_subscription_is_never_told_of_itself() -> None:
    fail(make_subscription(name="self", topic_patterns=["test.>", "system.>"]))
    tell_due()
    assert Event.objects.filter(topic=TRIPPED).count() == 1
    assert reached() == {}


def test_two_dead_listeners_cannot_tell_of_each_other_for_ever() -> None:
    listeners = [
        make_subscription(name=name, topic_patterns=["system.>"], **fields)
        for name, fields in {
            "a": {},
            "b": {"all_tenants": True},
            "c": {"tenant": "acme"},
            "d": {"tenant": "acme"},
        }.items()
    ]
    fail(make_subscription(tenant="acme", name="billing"))
    sizes = []
    for _ in range(6):
        # Whatever is sent to them fails until they trip, and then they recover, by turns.
        tell_due()
        sizes.append(Delivery.objects.count())
        due = set(Delivery.objects.values_list("subscription_id", flat=True))
        Delivery.objects.all().delete()
        failing = [one for one in listeners if one.pk in due]
        fail(*failing)
        for one in failing:
            one.refresh_from_db()
            circuit.reset([one.pk], epoch=one.circuit_epoch)
    # First billing's trip for b, c and d; then c's and d's, for b alone; of b's nobody hears.
    assert sizes[0] == 3
    assert sizes[1] == 4  # two trips and two recoveries
    assert sizes[2:] == [0, 0, 0, 0]


@pytest.mark.parametrize("topic", ["system.webhooks.fuse.blown", "system.a", "system"])
def test_applications_cannot_publish_on_the_reserved_topics(topic: str) -> None:
    with pytest.raises(InvalidTopic, match="reserved"):
        publish(topic, {})
    assert "reserved" in refusal("publish_event", topic, "--data", "{}", code=2)
    publish("systems.a", {})
    publish("a.system", {})


def test_all_topics_of_notices_are_reserved() -> None:
    assert {one.partition(".")[0] for one in wording.TOPICS} == {"system"}


# What fails.


def test_a_mail_server_that_is_down_stops_nothing_else_and_is_tried_again_ever_later(
    mailed: None, settings: Any
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
        settings.EMAIL_HOST, settings.EMAIL_PORT = nobody.getsockname()
        make_subscription(name="pager", topic_patterns=["system.>"])
        fail(make_subscription(name="billing"))
        waits = []
        for attempt in range(1, 5):
            assert tell_due() == 1
            entry = AuditEntry.objects.get(action="tripped")
            assert entry.told == ["event", "signal"]
            assert entry.notice_attempts == attempt
            assert "mail: " in entry.notice_error
            assert "Connection refused" in entry.notice_error
            assert entry.notify_at is not None
            waits.append(round((entry.notify_at - timezone.now()).total_seconds()))
            assert tell_due() == 0
            AuditEntry.objects.filter(pk=entry.pk).update(notify_at=timezone.now())
    assert waits == pytest.approx([60, 120, 240, 480], abs=3)
    assert reached() == {TRIPPED: {"pager"}}
    assert Event.objects.count() == 1
    (shown,) = run_json("audit", "--untold")
    assert "Connection refused" in shown["notice_error"]
    with MailServer() as server:
        settings.EMAIL_PORT = server.server_address[1]
        assert tell_due() == 1
        assert [message["Subject"] for message in server.messages] == [
            "[webhooks] billing has tripped; its deliveries are held"
        ]
    entry.refresh_from_db()
    assert (entry.told, entry.notice_error) == (["event", "signal", "mail"], "")
    assert entry.notified_at is not None


def test_a_notice_that_nobody_takes_is_given_up_after_three_days(
    mailed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no")

    monkeypatch.setattr("deliveries.notices.telling._send_mail", refuse)
    fail(make_subscription())
    AuditEntry.objects.update(at=timezone.now() - timedelta(days=4))
    tell_due()
    entry = AuditEntry.objects.get(action="tripped")
    assert (entry.notify_at, entry.notified_at) == (None, None)
    assert entry.notice_error == "mail: no"


def test_a_receiver_of_the_signal_that_raises_stops_nothing() -> None:
    def raises(**_: Any) -> None:
        raise RuntimeError

    signals.notice.connect(raises)
    try:
        fail(make_subscription())
        tell_due()
    finally:
        signals.notice.disconnect(raises)
    assert AuditEntry.objects.get(action="tripped").notified_at is not None


def test_a_teller_that_died_leaves_its_notices_to_another(
    mailed: None, monkeypatch: pytest.MonkeyPatch, prompted: list[str]
) -> None:
    def die(*_: Any) -> None:
        raise SystemExit

    make_subscription(name="pager", topic_patterns=["system.>"])
    fail(make_subscription())
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("deliveries.notices.telling._send_signal", die)
        tell_due()
    prompted.clear()
    sweep()
    assert prompted == [], "its time has not come"
    AuditEntry.objects.untold().update(notify_at=timezone.now())
    sweep()
    assert prompted == ["deliveries.tasks.tell"]
    tell_due()
    assert Event.objects.count() == 1
    assert len(mail.outbox) == 1


def test_a_broker_that_is_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(SEND_TASK, away)
    fail(make_subscription())
    assert AuditEntry.objects.due().count() == 1


# What it costs, and what is left.


def test_a_trip_costs_one_insert_and_a_success_nothing() -> None:
    first, second = make_subscription(), make_subscription()
    report = Report(first.pk, 0, tally([True]))
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        circuit.record([report])
    assert not [query for query in queries if "audit" in str(query["sql"])]
    with CaptureQueriesContext(connection) as queries, transaction.atomic():
        circuit.record(
            [
                Report(one.pk, 0, tally([False] * 5), failed=True, answered=True)
                for one in (first, second)
            ]
        )
    assert len([query for query in queries if "audit" in str(query["sql"])]) == 1


def test_notices_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "flush", lambda: True)
    counts._counts.clear()
    fail(make_subscription())
    tell_due()
    assert counts._counts["notice tripped event"] == 1
    assert counts._counts["notice tripped signal"] == 1
    assert counts._counts["notice tripped mail"] == 0


def test_old_entries_are_removed(configure: Callable[..., None]) -> None:
    configure(keep_audit_days=30)
    make_subscription()
    kept = make_subscription()
    AuditEntry.objects.exclude(subscription_id=kept.pk).update(
        at=timezone.now() - timedelta(days=31)
    )
    prune()
    assert [entry.subscription_id for entry in AuditEntry.objects.all()] == [kept.pk]


def test_the_command_lists_the_audit() -> None:
    billing, other = make_subscription(name="billing"), make_subscription(name="other")
    with audit.acting("alice", "admin"):
        circuit.pause([billing.pk])
    fail(other)
    text = run("audit")
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "alice (Admin)" in text
    assert "5 of 5 failures in a row" in text
    assert [row["action"] for row in run_json("audit", "--subscription", "billing")] == [
        "paused",
        "created",
    ]
    (row,) = run_json("audit", "--action", "tripped", "--since", "1h", "--limit", "1")
    assert (row["subscription_name"], row["via"]) == ("other", "system")
    key = str(billing.pk)
    billing.delete()
    assert run_json("audit", "--subscription", key)[0]["action"] == "deleted"
    assert run("audit", "--via", "api") == "No entry.\n"
    assert AuditCommand.examples
