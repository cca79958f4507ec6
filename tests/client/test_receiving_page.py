"""docs/receiving.md: its programs take what the engine sends, and nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from deliveries import publish
from deliveries.judging.policy import MAX_RETRY_AFTER, MIN_RETRY_AFTER, Verdict, judge
from deliveries.models import Attempt
from deliveries.sending.request import signed_post
from deliveries.sending.send_test import send_test
from subscriptions.conf import WebhookSettings
from subscriptions.secrets import signing_secrets
from tests.client.page import LANGUAGES, PAGE, Program, block, command
from tests.deliveries.sending import Send, make_due, the_delivery
from tests.factories import make_subscription_with_secret
from webhooks_project.receiver import Answer, Receiver

Start = Callable[..., Any]
NOW = int(time.time())


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], list[str]]:
    """The command of each program, made (and compiled) once."""
    made: dict[tuple[str, str], list[str]] = {}

    def of(language: str, form: str) -> list[str]:
        key = (language, form)
        if key not in made:
            made[key] = command(language, form, tmp_path_factory.mktemp(f"{language}-{form}"))
        return made[key]

    return of


# By one process of the tests: Go compiles its own library for half a minute, once.
@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in LANGUAGES]
)
def start(request: Any, commands: Callable[[str, str], list[str]], tmp_path: Path) -> Start:
    """Start a language's program with these secrets: `with start("whsec_…") as program`."""

    @contextmanager
    def run(*secrets: str, form: str = "standard") -> Iterator[Program]:
        with Program(commands(request.param, form), list(secrets), tmp_path / "printed") as program:
            yield program

    return run


def signed(secrets: list[str], *, timestamp: int = NOW, payload: str = "") -> Any:
    """A request as the engine makes it, with a body that its `json` would write otherwise."""
    event_id = "0199f3a5-6c1e-7d09-8a53-1b7d3f0c2e44"
    body = json.dumps({"id": event_id, "topic": "test.one", "payload": {"ü": 1.0, "n": payload}})
    return signed_post(
        "http://127.0.0.1/",
        {},
        secrets,
        event_id=event_id,
        topic="test.one",
        body=body.encode(),
        timestamp=timestamp,
    )


def deliver_to(url: str, send: Send, secret: str | None = None) -> Any:
    """Have the engine deliver an event to that receiver, and return the subscription."""
    subscription, _ = make_subscription_with_secret(url=url, secret=secret)
    publish("test.ünï", {"total": 1.50, "text": "ä\n€", "large": 2**53 - 1})
    send(subscription)
    return subscription


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", ["standard", "plain"])
def test_a_delivery_of_the_engine_is_accepted(start: Start, send: Send, form: str) -> None:
    secret = signing_secrets.generate()
    with start(secret, form=form) as program:
        deliver_to(program.url, send, secret)
        delivery = the_delivery()
        assert delivery.status == "succeeded"
        assert Attempt.objects.get().status_code == 204
        assert program.printed().split() == [delivery.event_id, "test.ünï"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", ["standard", "plain"])
def test_a_delivery_to_a_receiver_with_another_secret_is_refused(
    start: Start, send: Send, form: str
) -> None:
    with start(signing_secrets.generate(), form=form) as program:
        deliver_to(program.url, send)
        assert the_delivery().status == "failed"
        assert Attempt.objects.get().status_code == 401
        assert "test." not in program.printed()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", ["standard", "plain"])
@pytest.mark.parametrize("known", ["old", "new", "both"])
def test_while_a_secret_is_rotated_either_is_enough(
    start: Start, send: Send, form: str, known: str
) -> None:
    old, new = signing_secrets.generate(), signing_secrets.generate()
    secrets = {"old": [old], "new": [new], "both": [new, old]}[known]
    with start(*secrets, form=form) as program:
        subscription, _ = make_subscription_with_secret(url=program.url, secret=old)
        subscription.rotate_secret(new)
        publish("test.one", {})
        send(subscription)
        # The plain header has room for one signature: the old one, as the page says.
        refused = form == "plain" and known == "new"
        assert Attempt.objects.get().status_code == (401 if refused else 204)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("form", ["standard", "plain"])
def test_a_delivery_whose_body_was_changed_is_refused(
    start: Start, send: Send, receiver: Receiver, form: str
) -> None:
    secret = signing_secrets.generate()
    deliver_to(receiver.url, send, secret)
    recorded = receiver.received[0]
    with start(secret, form=form) as program:
        assert program.post(recorded.headers, recorded.body) == 204
        assert program.post(recorded.headers, recorded.body.replace(b"1.5", b"9.5")) == 401
        # The same JSON in other bytes.
        written_again = json.dumps(json.loads(recorded.body)).encode()
        assert program.post(recorded.headers, written_again) == 401
        assert program.post(recorded.headers, recorded.body + b"\n") == 401


@pytest.mark.parametrize(
    ("age", "status"), [(0, 204), (280, 204), (320, 401), (-280, 204), (-320, 401), (10**9, 401)]
)
def test_a_request_that_was_signed_too_long_ago_is_refused(
    start: Start, age: int, status: int
) -> None:
    secret = signing_secrets.generate()
    request = signed([secret], timestamp=int(time.time()) - age)
    with start(secret) as program:
        assert program.post(request.headers, request.body) == status


@pytest.mark.parametrize(
    "changes",
    [
        {"webhook-id": "another"},
        {"webhook-id": None},
        {"webhook-timestamp": str(NOW - 1)},
        {"webhook-timestamp": None},
        {"webhook-timestamp": ""},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "NaN"},
        {"webhook-timestamp": "9" * 5000},
        {"webhook-signature": None},
        {"webhook-signature": "v1,"},
        {"webhook-signature": "v1,\u00fc"},
        {"webhook-signature": "v2"},
    ],
    ids=lambda given: str(given)[:40].replace(str(NOW - 1), "a second ago"),
)
def test_a_header_that_is_wrong_is_answered_401_and_not_a_crash(
    start: Start, changes: dict[str, str | None]
) -> None:
    secret = signing_secrets.generate()
    request = signed([secret], timestamp=int(time.time()))
    wrong = {
        name: value for name, value in {**request.headers, **changes}.items() if value is not None
    }
    with start(secret) as program:
        assert program.post(wrong, request.body) == 401
        assert program.post(request.headers, request.body) == 204


@pytest.mark.parametrize("form", ["standard", "plain"])
def test_a_receiver_without_a_secret_accepts_nothing(start: Start, form: str) -> None:
    with start(form=form) as program:
        for secret in ("whsec_", ""):
            request = signed([secret], timestamp=int(time.time()))
            assert program.post(request.headers, request.body) == 401


def test_a_body_that_is_too_large_or_breaks_off_does_no_harm(start: Start) -> None:
    secret = signing_secrets.generate()
    large = signed([secret], payload="x" * 2**20)
    with start(secret) as program:
        # It may answer and hang up before all was sent.
        with suppress(BrokenPipeError, ConnectionResetError):
            assert program.post(large.headers, large.body) == 413
        program.hang_up()
        request = signed([secret], timestamp=int(time.time()))
        assert program.post(request.headers, request.body) == 204


@pytest.mark.django_db(transaction=True)
def test_a_test_event_is_as_the_page_says(start: Start, sender: Any) -> None:
    secret = signing_secrets.generate()
    with start(secret) as program:
        subscription, _ = make_subscription_with_secret(url=program.url, secret=secret)
        tested = send_test(subscription)
        assert tested.status_code == 204
        assert program.printed().split() == [tested.event_id, "webhooks.test"]


@pytest.mark.django_db(transaction=True)
def test_the_request_on_the_page_is_like_one_of_the_engine(send: Send, receiver: Receiver) -> None:
    deliver_to(receiver.url, send)
    sent = receiver.received[0]
    head, _, body = block("http").partition("\n\n")
    shown = dict(line.split(": ", 1) for line in head.splitlines()[1:])
    of_http = {"Host", "Accept", "Content-Length", "Connection"}
    assert set(shown) == set(sent.headers) - of_http
    assert shown["User-Agent"] == sent.headers["User-Agent"]
    assert list(json.loads(body)) == list(json.loads(sent.body))
    keys = re.findall(r"^\| `(\w+)` \|", PAGE, re.M)
    assert set(keys) == set(json.loads(sent.body))


def test_the_table_of_answers_is_what_the_policy_says() -> None:
    table = PAGE[PAGE.index("| you answer |") :].split("\n\n")[0]
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    by_verdict = {
        Verdict.SUCCESS: "is done with it",
        Verdict.RETRY: "tries again",
        Verdict.GONE: "tripped at once",
        Verdict.FINAL: "stops: the delivery has failed. Redirects",
    }

    def meant(status: int) -> str:
        for answers, what in rows:
            if "nothing" in answers:
                continue
            for first, last in re.findall(r"(\d{3})(?: to (\d{3}))?", answers):
                if int(first) <= status <= int(last or first):
                    return what
        return next(what for answers, what in rows if "anything else" in answers)

    for status in [*range(200, 600)]:
        assert by_verdict[judge(status, "", None).verdict] in meant(status), status
    assert by_verdict[judge(None, "timeout", None).verdict] in rows[1][1]


def test_the_times_on_the_page_are_the_defaults() -> None:
    values = WebhookSettings()
    assert values.quick_retries == (1, 2, 4)
    assert "1, 2 and 4 seconds after" in PAGE
    minutes, hours = values.slow_retries[:2], values.slow_retries[2:]
    assert [one / 60 for one in minutes] == [5, 30]
    assert [one / 3600 for one in hours] == [2, 5, 10, 14, 20, 24]
    flowing = " ".join(PAGE.split())
    assert "after 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours" in flowing
    assert len(values.quick_retries + values.slow_retries) + 1 == 12
    assert 72 * 3600 < sum(values.slow_retries) < 78 * 3600
    assert "the last of the twelve requests more than three days after the first" in flowing
    assert values.retry_jitter == 1 / 5
    assert values.request_timeout == 10
    assert (MIN_RETRY_AFTER, MAX_RETRY_AFTER) == (1, 24 * 3600)
    assert values.max_backoff == 3600
    assert values.circuit_threshold == 5
    assert values.hold_days == 7
    assert (values.probe_first, values.probe_most) == (5 * 60, 6 * 3600)
    assert values.max_in_flight == 10
    assert (values.keep_succeeded_days, values.keep_failed_days) == (30, 90)
    assert values.secret_overlap == 24 * 3600
    assert values.max_payload_bytes < 1024 * 1024, "what the programs take"


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_asks_for_time_is_left_alone_for_that_time(
    send: Send, receiver: Receiver, script: Any
) -> None:
    script.always = Answer(429, headers={"Retry-After": "60"})
    subscription, _ = make_subscription_with_secret(url=receiver.url, max_in_flight=1)
    publish("test.one", {})
    publish("test.two", {})
    for _ in range(3):
        send(subscription)
    assert len(receiver.received) == 1
    script.always = None
    make_due()
    send(subscription)
    assert [one.answered for one in receiver.received] == [429, 200, 200]
    assert len({one.id for one in receiver.received}) == 2


@pytest.mark.django_db(transaction=True)
def test_only_a_receiver_for_all_tenants_is_told_whose_an_event_is(
    send: Send, receiver: Receiver
) -> None:
    everything, _ = make_subscription_with_secret(url=receiver.url, all_tenants=True)
    own, _ = make_subscription_with_secret(url=receiver.url, tenant="ac me")
    publish("test.one", {}, tenant="ac me")
    publish("test.one", {})
    send(own)
    assert [one.header("X-Webhook-Tenant") for one in receiver.received] == [""]
    send(everything)
    assert sorted(one.header("X-Webhook-Tenant") for one in receiver.received) == [
        "",
        "",
        "ac%20me",
    ]


@pytest.mark.django_db
def test_the_inbox_of_the_page_takes_an_event_once() -> None:
    create, _, rest = block("sql").partition(");")
    insert = rest[rest.index("INSERT") :].replace("$1", "%s").replace("$2", "%s")
    with connection.cursor() as cursor:
        cursor.execute(create.replace("CREATE TABLE", "CREATE TEMPORARY TABLE") + ")")
        found = []
        for _ in range(2):
            cursor.execute(insert, ["evt-1", json.dumps({"v": 1})])
            found.append(cursor.fetchone())
    assert found == [("evt-1",), None]
