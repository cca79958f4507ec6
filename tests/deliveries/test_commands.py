"""The commands with which an operator publishes, lists, replays and prunes."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.core.management import call_command
from django.utils import timezone

from deliveries import publish
from deliveries.holding import hold
from deliveries.keeping import replay as replaying
from deliveries.keeping.housekeeping import expire_held
from deliveries.keeping.replay import Chosen, Replayed, replay_chosen
from deliveries.models import Delivery, Event, Lane
from subscriptions import circuit
from subscriptions.models import Subscription, TripFuse
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription, statuses
from tests.subscriptions.test_commands import trip
from tests.terminal import terminal

pytestmark = pytest.mark.django_db


def finish(status: str = "failed", age: timedelta = timedelta(), **chosen: Any) -> list[int]:
    """End open deliveries as if that long ago; returns their ids."""
    then = timezone.now() - age
    deliveries = Delivery.objects.filter(status__in=["pending", "held"], **chosen)
    ids = sorted(deliveries.values_list("pk", flat=True))
    deliveries.update(
        status=status, next_attempt_at=None, finished_at=then, created_at=then,
        retries_used=4, attempt_count=5, last_error="503",
    )  # fmt: skip
    return ids


# publish_event


def test_publishing_says_how_many_subscriptions_matched() -> None:
    make_subscription(topic_patterns=["order.*"])
    tripped = make_subscription(topic_patterns=["order.>"])
    trip(tripped)
    output = run("publish_event", "order.created", "--data", '{"id": 42}', "--type", "created")
    event = Event.objects.get()
    assert (event.topic, event.type, event.payload) == ("order.created", "created", {"id": 42})
    assert event.id in output
    assert "2 subscriptions match, 1 of them tripped" in output
    assert "No active or tripped" in run("publish_event", "other", "--data", "{}")


def test_the_payload_comes_from_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "order.json"
    file.write_text('{"from": "file ü"}', encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO('{"from": "stdin"}'))
    ids = [run_json("publish_event", "a", "--data", data)["id"] for data in (f"@{file}", "-")]
    assert [Event.objects.get(pk=one).payload["from"] for one in ids] == ["file ü", "stdin"]


def test_the_same_event_is_published_once() -> None:
    make_subscription(topic_patterns=["a"])
    words = ("publish_event", "a", "--data", "{}", "--id", "order-1")
    assert run_json(*words) == {
        "id": "order-1", "topic": "a", "tenant": "", "already_published": False,
        "subscriptions": 1, "held": 0,
    }  # fmt: skip
    assert run_json(*words)["already_published"]
    assert "was published before" in run(*words)
    assert Delivery.objects.count() == 1
    assert "taken" in refusal("publish_event", "b", "--data", "{}", "--id", "order-1")


@pytest.mark.parametrize(
    ("topic", "data", "reason"),
    [
        ("a..b", "{}", "'a..b'"),
        ("a", "{id: 1}", "--data is not JSON"),
        ("a", "[1]", "a dict"),
        ("a", '{"x": NaN}', "nan"),
        ("a", "@/no/such/file", "/no/such/file cannot be read: No such file"),
    ],
)
def test_a_wrong_event_is_refused_with_the_reason(topic: str, data: str, reason: str) -> None:
    assert reason.lower() in refusal("publish_event", topic, "--data", data, code=2).lower()
    assert not Event.objects.exists()


# subscriptions


def test_tripped_subscriptions_are_listed_first_with_their_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pytest-xdist's processes have it.
    monkeypatch.delenv("COLUMNS", raising=False)
    make_subscription(name="a", topic_patterns=["x"])
    paused = make_subscription(name="b", topic_patterns=["x"])
    tripped = make_subscription(name="c", topic_patterns=["x"])
    trip(tripped, "503 Service Unavailable: " + "x" * 200)
    circuit.pause([paused.pk])
    for _ in range(3):
        publish("x", {})
    tripped.refresh_from_db()
    heading, first, error, *others = run("subscriptions").splitlines()
    assert heading.split()[0] == "STATE"
    assert tripped.auto_disabled_at is not None
    assert first.split() == ["TRIPPED", "c", urlsplit(tripped.url).netloc, "0", "3", "never"]
    since = f"{tripped.auto_disabled_at:%Y-%m-%d %H:%M:%S}"
    assert error == f"  since {since} (just now): 503 Service Unavailable: {'x' * 200}"
    assert [(*line.split()[:2], *line.split()[3:]) for line in others] == [
        ("PAUSED", "b", "0", "0", "never"),
        ("ACTIVE", "a", "3", "0", "never"),
    ]
    monkeypatch.setenv("COLUMNS", "80")
    assert all(len(line) <= 80 for line in run("subscriptions").splitlines())


def test_the_list_has_one_state_if_asked(django_assert_num_queries: Any) -> None:
    trip(make_subscription(name="a"))
    for name in "bcdef":
        make_subscription(name=name)
    with django_assert_num_queries(4):
        [one] = run_json("subscriptions", "--state", "tripped")
    assert (one["name"], one["state"], one["held"]) == ("a", "tripped", 0)
    assert run("subscriptions", "--state", "paused") == "No subscription is paused.\n"
    with django_assert_num_queries(4):
        assert len(run_json("subscriptions")) == 6


def test_what_backs_off_says_until_when_and_why() -> None:
    subscription = make_subscription(name="a", topic_patterns=["x"])
    publish("x", {})
    Subscription.objects.update(last_error="429 Too Many Requests")
    until = timezone.now() + timedelta(minutes=4)
    Lane.objects.create(subscription=subscription, failures=1, resume_at=until)
    _, row, note = run("subscriptions").splitlines()
    assert row.split()[:2] == ["ACTIVE", "a"]
    assert note.startswith(f"  backing off until {until:%Y-%m-%d %H:%M:%S} UTC, because 429")
    [one] = run_json("subscriptions")
    assert one["backing_off_until"] == until.isoformat()
    assert one["backing_off_because"] == "429 Too Many Requests"
    Lane.objects.update(resume_at=timezone.now())
    assert "backing off" not in run("subscriptions")
    assert run_json("subscriptions")[0]["backing_off_until"] is None


def test_what_fails_comes_after_what_tripped_with_its_count(
    configure: Callable[..., None],
) -> None:
    configure(circuit_threshold=5)
    make_subscription(name="a")
    make_subscription(name="b", url="https://other.example:8443/x?token=canary")
    Subscription.objects.filter(name="b").update(consecutive_failures=3, last_error="503")
    _, first, note, second = run("subscriptions").splitlines()
    assert first.startswith("FAILING · 3/5  b ")
    assert "other.example:8443" in first
    assert "canary" not in first
    assert note == "  503"
    assert second.startswith("ACTIVE")
    assert [one["name"] for one in run_json("subscriptions", "--state", "failing")] == ["b"]
    assert [one["name"] for one in run_json("subscriptions", "--state", "active")] == ["b", "a"]
    assert [one["name"] for one in run_json("subscriptions", "--host", "other.example")] == ["b"]
    assert "not a host" in refusal("subscriptions", "--host", "a/b", code=2)
    with terminal(80) as screen:
        call_command("subscriptions", stdout=screen.stream)
    assert "\x1b[33mFAILING" in screen.raw
    assert all(len(line) <= 80 for line in screen.text.splitlines())


def test_lanes_are_listed_if_asked() -> None:
    subscription = make_subscription(name="a")
    until = timezone.now() + timedelta(seconds=13)
    Lane.objects.create(subscription=subscription, failures=2, lease_until=until)
    assert "lease" not in run("subscriptions")
    _, _, sending, failing = run("subscriptions", "--lanes").splitlines()
    assert f"its lease ends at {until:%Y-%m-%d %H:%M:%S} UTC" in sending
    assert "2 failed attempts in a row" in failing
    [one] = run_json("subscriptions")
    assert (one["sending_until"], one["failed_attempts"]) == (until.isoformat(), 2)
    assert all(len(line) <= 80 for line in run("subscriptions", "--lanes").splitlines())


def test_the_first_line_says_that_the_fuse_is_blown(capsys: pytest.CaptureFixture[str]) -> None:
    make_subscription(name="a")
    TripFuse.objects.update_or_create(pk=1, defaults={"blown_at": timezone.now()})
    assert run("subscriptions").startswith("The fuse is blown since 20")
    assert len(run_json("subscriptions")) == 1
    assert "The fuse is blown since 20" in capsys.readouterr().err


def test_tenants_have_a_column_if_there_are_any() -> None:
    make_subscription(name="own")
    assert "TENANT" not in run("subscriptions")
    make_subscription(name="billing", tenant="acme")
    make_subscription(name="audit", all_tenants=True)
    lines = run("subscriptions").splitlines()
    assert [line.split()[1:3] for line in lines[1:]] == [
        ["(all)", "audit"],
        ["–", "own"],
        ["acme", "billing"],
    ]
    assert lines[0].split()[:3] == ["STATE", "TENANT", "NAME"]
    [one] = run_json("subscriptions", "--tenant", "acme")
    assert (one["name"], one["tenant"], one["all_tenants"]) == ("billing", "acme", False)
    assert {one["name"] for one in run_json("subscriptions", "--tenant", "")} == {"own", "audit"}
    assert "of the tenant 'x' exists yet" in run("subscriptions", "--tenant", "x")


def test_an_event_is_published_for_a_tenant() -> None:
    make_subscription(topic_patterns=["a"])
    make_subscription(topic_patterns=["a"], tenant="acme")
    words = ("publish_event", "a", "--data", "{}", "--id", "x")
    answer = run_json(*words, "--tenant", "acme")
    assert (answer["tenant"], answer["subscriptions"]) == ("acme", 1)
    assert "taken" in refusal(*words)


def test_the_deliveries_of_a_tenants_subscription_are_replayed() -> None:
    for tenant in ("", "acme"):
        make_subscription(name="billing", topic_patterns=["a"], tenant=tenant)
        publish("a", {}, tenant=tenant)
    finish("failed")
    words = ("replay", "--subscription", "billing", "--tenant", "acme")
    assert run_json(*words)["pending"] == 1
    assert Delivery.objects.get(tenant="acme").status == "pending"
    assert Delivery.objects.get(tenant="").status == "failed"
    assert "--subscription" in refusal("replay", "1", "--tenant", "acme", code=2)


def test_no_subscription_yet_is_said() -> None:
    assert run("subscriptions") == "No subscription exists yet.\n"


# reset_circuit and resume, discarding


@pytest.mark.parametrize("command", ["reset_circuit", "resume"])
def test_discarding_says_how_many_and_asks(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subscription = make_subscription(name="a", topic_patterns=["x"])
    publish("x", {})
    publish("x", {})
    if command == "resume":
        circuit.pause([subscription.pk])
    else:
        trip(subscription)
        hold([subscription.pk])
    words = (command, "a", "--discard-held")
    assert refusal(*words).startswith("2 held deliveries will be discarded; nothing was done.")
    terminal = io.StringIO("no\nyes\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    assert refusal(*words) == "Nothing was done."
    assert statuses(subscription) == {"held": 2}
    run(*words)
    assert "2 held deliveries will be discarded. Type yes" in capsys.readouterr().err
    assert statuses(subscription) == {"discarded": 2}


def test_discarding_does_not_ask_if_told_so_or_if_nothing_is_held() -> None:
    first, second = make_subscription(name="a", topic_patterns=["x"]), make_subscription(name="b")
    trip(first)
    trip(second)
    publish("x", {})
    assert run("reset_circuit", "b", "--discard-held") == "b: reset; what was held is discarded\n"
    run("reset_circuit", "--all", "--discard-held", "--yes")
    assert statuses(first) == {"discarded": 1}


# replay


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The subscriptions for which a replay wakes workers."""
    woken: list[Any] = []
    monkeypatch.setattr(replaying, "wake", woken.extend)
    return woken


@pytest.mark.parametrize("status", ["succeeded", "failed", "discarded"])
def test_a_finished_delivery_is_sent_again_with_its_id(
    status: str, woken: list[Any], django_capture_on_commit_callbacks: Any
) -> None:
    subscription = make_subscription()
    event = publish("test.a", {})
    [delivery_id] = finish(status)
    with django_capture_on_commit_callbacks(execute=True):
        assert run("replay", str(delivery_id)) == "1 delivery will be sent again now.\n"
    delivery = Delivery.objects.get()
    assert (delivery.status, delivery.event_id) == ("pending", event.id)
    assert (delivery.retries_used, delivery.attempt_count, delivery.last_error) == (0, 5, "")
    assert delivery.finished_at is None
    assert delivery.next_attempt_at is not None
    assert woken == [subscription.pk]


def test_a_replay_is_done_once_however_often_it_is_asked_for(woken: list[Any]) -> None:
    make_subscription()
    publish("test.a", {})
    [delivery_id] = finish()
    run("replay", str(delivery_id), str(delivery_id))
    assert refusal("replay", str(delivery_id)) == (f"Delivery {delivery_id}: it is pending already")


@pytest.mark.parametrize("stop", [trip, lambda one: circuit.pause([one.pk])])
def test_what_belongs_to_a_stopped_subscription_is_held(
    stop: Callable[[Subscription], object], woken: list[Any]
) -> None:
    subscription = make_subscription()
    publish("test.a", {})
    [delivery_id] = finish()
    stop(subscription)
    assert run_json("replay", str(delivery_id)) == {"pending": 0, "held": 1, "refused": {}}
    assert statuses(subscription) == {"held": 1}
    assert woken == []
    circuit.reset([subscription.pk])
    assert statuses(subscription) == {"pending": 1}


def test_an_old_delivery_is_held_from_its_replay_on(configure: Callable[..., None]) -> None:
    configure(hold_days=7)
    subscription = make_subscription()
    publish("test.a", {})
    [delivery_id] = finish(age=timedelta(days=8))
    circuit.pause([subscription.pk])
    assert run_json("replay", str(delivery_id))["held"] == 1
    assert expire_held() == 0


def test_what_cannot_be_replayed_is_said_and_the_rest_is_done(woken: list[Any]) -> None:
    gone = make_subscription(topic_patterns=["test.a"])
    publish("test.a", {})
    finish()
    make_subscription(topic_patterns=["test.b"])
    publish("test.b", {})
    finish()
    gone.delete()
    deleted, good = Delivery.objects.order_by("pk").values_list("pk", flat=True)
    message = refusal("replay", str(good), str(deleted), "999999999")
    assert message.splitlines() == [
        f"Delivery {deleted}: its subscription was deleted",
        "Delivery 999999999: there is no such delivery",
    ]
    assert Delivery.objects.get(pk=good).status == "pending"


def test_a_subscriptions_failures_are_chosen_by_status_and_time(woken: list[Any]) -> None:
    make_subscription(name="a")
    make_subscription(name="b")
    chosen = {"subscription__name": "a"}
    for status, age in (("failed", 3), ("discarded", 1), ("succeeded", 1), ("failed", 30)):
        publish("test.a", {})
        finish(status, timedelta(hours=age))
    assert run("replay", "--subscription", "a", "--dry-run") == (
        "3 deliveries would be sent again.\n  a: 3\n"
    )
    words = ("replay", "--subscription", "a", "--dry-run")
    assert run_json(*words, "--since", "2h") == {
        "chosen": 1, "by_subscription": {"a": 1}, "refused": {},
    }  # fmt: skip
    assert run_json(*words, "--since", "1d", "--until", "2h")["chosen"] == 1
    assert run_json(*words, "--status", "succeeded")["chosen"] == 1
    assert run_json(*words, "--topic", "test.a")["chosen"] == 3
    assert run_json(*words, "--topic", "test.b")["chosen"] == 0
    tomorrow = (timezone.now() + timedelta(days=1)).date().isoformat()
    assert run_json(*words, "--since", tomorrow) == {
        "chosen": 0,
        "by_subscription": {},
        "refused": {},
    }
    assert Delivery.objects.filter(status="pending").count() == 0
    assert run_json("replay", "--subscription", "a")["pending"] == 3
    assert Delivery.objects.filter(status="pending", **chosen).count() == 3


def test_a_dry_run_counts_by_subscription_and_changes_nothing(woken: list[Any]) -> None:
    """Of the given ids, those that would be sent again."""
    for name in "ab":
        make_subscription(name=name)
    publish("test.a", {})
    publish("test.a", {})
    finished = finish(subscription__name="a") + finish(subscription__name="b")
    publish("test.a", {})
    ids = [str(one) for one in Delivery.objects.values_list("pk", flat=True)]
    before = statuses(Subscription.objects.get(name="a"))
    assert len(finished) == 4
    assert run_json("replay", *map(str, finished), "--dry-run") == {
        "chosen": 4, "by_subscription": {"a": 2, "b": 2}, "refused": {},
    }  # fmt: skip
    assert "it is pending already" in refusal("replay", *ids, "--dry-run")
    assert statuses(Subscription.objects.get(name="a")) == before
    assert woken == []


def test_a_large_replay_goes_in_batches(monkeypatch: pytest.MonkeyPatch, woken: list[Any]) -> None:
    monkeypatch.setattr(replaying, "BATCH", 2)
    make_subscription(name="a")
    for _ in range(5):
        publish("test.a", {})
    finish()
    assert run_json("replay", "--subscription", "a")["pending"] == 5


def test_a_large_replay_reads_a_batch_when_it_is_its_turn(
    monkeypatch: pytest.MonkeyPatch, woken: list[Any]
) -> None:
    """What somebody else did since it began is no error, and nothing is read twice."""
    monkeypatch.setattr(replaying, "BATCH", 2)
    make_subscription(name="a", topic_patterns=["x"])
    for _ in range(5):
        publish("x", {})
    *_, last = finish()
    batches: list[Sequence[int]] = []

    def replay_while_others_do(ids: Sequence[int], *entry: Any) -> Any:
        batches.append(ids)
        if len(batches) == 1:
            original([last])
            publish("x", {})
            finish("failed", pk__gt=last)  # fails after the command began
        return original(ids, *entry)

    original = replaying.replay
    monkeypatch.setattr(replaying, "replay", replay_while_others_do)
    assert run_json("replay", "--subscription", "a")["pending"] == 4
    assert [len(one) for one in batches] == [2, 2]
    assert Delivery.objects.get(status="failed").pk > last


def test_a_large_replay_that_is_killed_goes_on_with_the_rest(
    monkeypatch: pytest.MonkeyPatch, woken: list[Any]
) -> None:
    monkeypatch.setattr(replaying, "BATCH", 2)
    make_subscription(name="a", topic_patterns=["x"])
    for _ in range(5):
        publish("x", {})
    finish()
    killed = replay_chosen(Chosen(Subscription.objects.get(), ["failed"]))
    assert next(killed) == Replayed(pending=2)
    killed.close()
    assert Delivery.objects.filter(status="pending").count() == 2
    assert run_json("replay", "--subscription", "a")["pending"] == 3


def test_a_long_replay_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, woken: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replaying, "BATCH", 2)
    monkeypatch.setattr("deliveries.management.commands.replay.PROGRESS", 1)
    make_subscription(name="a", topic_patterns=["x"])
    for _ in range(3):
        publish("x", {})
    finish()
    run("replay", "--subscription", "a")
    assert capsys.readouterr().err.splitlines() == [
        "… 2 deliveries so far", "… 3 deliveries so far",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 2),
        (["1", "--subscription", "a"], 2),
        (["1", "--since", "2h"], 2),
        (["one"], 1),
        (["--subscription", "a", "--since", "yesterday"], 1),
        (["--subscription", "nobody"], 1),
    ],
)
def test_a_replay_that_is_not_clear_is_refused(words: list[str], code: int) -> None:
    assert refusal("replay", *words, code=code)


# prune


def test_pruning_reports_what_it_did(configure: Callable[..., None]) -> None:
    configure(keep_succeeded_days=1, keep_failed_days=1, hold_days=1)
    make_subscription(name="a")
    publish("test.a", {})
    finish("succeeded", timedelta(days=2))
    subscription = make_subscription(name="b")
    trip(subscription)
    publish("test.b", {})
    old = timezone.now() - timedelta(days=2)
    Delivery.objects.filter(status="held").update(held_at=old)
    Event.objects.update(created_at=old)
    assert run_json("prune") == {"expired": 1, "removed_deliveries": 1, "removed_events": 1}
    output = run("prune")
    assert [line.split()[-1] for line in output.splitlines()] == ["0", "0", "0"]


@pytest.mark.parametrize(
    "command", ["publish_event", "subscriptions", "replay", "prune", "send_test", "receiver"]
)
def test_help_fits_a_terminal(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        call_command(command, "--help")
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
