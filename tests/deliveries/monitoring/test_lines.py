"""The log's line of each attempt."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from deliveries import publish
from deliveries.models import Delivery
from deliveries.monitoring.lines import FIELDS, Attempts, logger
from tests.deliveries.conftest import Script
from tests.factories import make_subscription
from webhooks_project.logs import ConsoleLines, JsonLines
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [one for one in caplog.records if one.name == logger.name]
    return [json.loads(line) for one in records for line in JsonLines().format(one).splitlines()]


@pytest.fixture(autouse=True)
def level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger.name)


def test_an_attempt_is_one_wide_line(
    send: Callable[..., None],
    receiver: Receiver,
    script: Script,
    caplog: pytest.LogCaptureFixture,
) -> None:
    subscription = make_subscription(
        url=receiver.url + "?token=canary-query",
        name='bill"ing',
        tenant="acme",
        headers={"X-Token": "canary-header"},
    )
    script.answers = [Answer(503, b"canary-body"), Answer(200)]
    event = publish("test.a", {"x": "canary-payload"}, tenant="acme")
    send(subscription)
    Delivery.objects.update(next_attempt_at=event.created_at)
    send(subscription)
    first, second = lines(caplog)
    delivery = Delivery.objects.get()
    assert list(first) == ["event", "level", "timestamp", *FIELDS]
    assert datetime.fromisoformat(first.pop("next_attempt")) > event.created_at
    assert first.pop("remote_address").startswith("127.0.0.1")
    for name in ("timestamp", "duration_ms"):
        assert first.pop(name) is not None
    assert first == {
        "event": "attempt", "level": "warning", "delivery": delivery.pk, "event_id": event.id,
        "topic": "test.a", "subscription": str(subscription.pk), "subscription_name": 'bill"ing',
        "tenant": "acme", "number": 1, "status": "pending", "status_code": 503, "outcome": "http",
        "verdict": "retry", "error": None,
    }  # fmt: skip
    shown = ("level", "number", "status", "status_code", "outcome", "verdict", "next_attempt")
    assert [second[name] for name in shown] == [
        "info", 2, "succeeded", 200, "success", "success", None
    ]  # fmt: skip
    told = json.dumps([first, second]) + caplog.text
    assert "canary" not in told


def test_a_receiver_that_is_not_there_is_named_in_the_line(
    send: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    subscription = make_subscription(url="http://127.0.0.1:9/?token=canary")
    publish("test.a", {})
    send(subscription)
    [line] = lines(caplog)
    assert (line["outcome"], line["status_code"]) == ("refused", None)
    assert line["error"]
    assert "canary" not in json.dumps(line)


def test_successes_have_lines_unless_they_are_switched_off(
    send: Callable[..., None],
    receiver: Receiver,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(log_successes=False)
    subscription = make_subscription(url=receiver.url)
    publish("test.a", {})
    send(subscription)
    assert Delivery.objects.get().status == "succeeded"
    assert lines(caplog) == []


HOSTILE = (
    1, 'e"\n\x1b[31m', "t", "0-0", "näme\u2028", "", 1, "succeeded", 200, "success", 5, "success",
    None, "127.0.0.1", None, "",
)  # fmt: skip


def record(message: object, **more: Any) -> logging.LogRecord:
    return logging.LogRecord("x", logging.INFO, __file__, 1, message, None, more.get("exc_info"))


def test_each_line_is_json_whatever_is_in_it() -> None:
    text = JsonLines().format(record(Attempts([HOSTILE, HOSTILE])))
    assert [json.loads(line)["event_id"] for line in text.split("\n")] == [HOSTILE[1]] * 2
    assert [json.loads(line)["subscription_name"] for line in text.split("\n")] == [HOSTILE[4]] * 2


def test_a_terminal_gets_a_line_to_read() -> None:
    text = ConsoleLines().format(record(Attempts([HOSTILE])))
    assert "attempt" in text
    assert "outcome=success" in text
    assert "tenant" not in text
    assert "\x1b[31m" not in text.replace("\\x1b", "")
    assert "\n" not in text


@pytest.mark.parametrize("lines", [JsonLines, ConsoleLines])
def test_no_traceback_shows_the_values_of_variables(lines: Callable[[], logging.Formatter]) -> None:
    secret = "canary-" + "secret"
    try:
        raise ValueError("wrong")
    except ValueError as error:
        told = record("broken", exc_info=(type(error), error, error.__traceback__))
    text = lines().format(told)
    assert "ValueError: wrong" in text
    assert "broken" in text
    assert secret not in text


def test_a_formatter_of_another_project_gets_text() -> None:
    text = logging.Formatter("%(levelname)s %(message)s").format(record(Attempts([HOSTILE])))
    assert text.startswith("INFO attempt delivery=1 ")
