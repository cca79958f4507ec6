"""When the client sends a request again: values in, values out, and no clock."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webhooks_client import Retries
from webhooks_client.errors import retry_after
from webhooks_client.retrying import (
    FIRST_DELAY,
    MAX_DELAY,
    Pause,
    Reply,
    Request,
    attempts,
    backoff,
    pause_before_retry,
)

SAFE = Request("POST", "/api/v1/events", content=b"{}", repeatable=True)
UNSAFE = Request("POST", "/api/v1/subscriptions", content=b"{}")
RETRIES = Retries(count=3, total=60)


def answer(status: int, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named)


def pause(request: Request, reply: Reply, *, retry: int = 0, elapsed: float = 0) -> float | None:
    return pause_before_retry(request, reply, retry, elapsed, RETRIES, 0.0)


class Script:
    """Plays the part of a client: a reply for each request, and a clock that pauses move."""

    def __init__(self, replies: Iterable[Reply], takes: float = 0.0) -> None:
        self._replies = iter(replies)
        self._takes = takes
        self.now = 1000.0
        self.sent: list[Request] = []
        self.pauses: list[float] = []

    def run(self, request: Request, retries: Retries = RETRIES) -> Reply:
        steps = attempts(request, retries, clock=lambda: self.now, random=lambda: 0.0)
        step = next(steps)
        try:
            while True:
                reply = None
                if isinstance(step, Pause):
                    self.pauses.append(step.seconds)
                    self.now += step.seconds
                else:
                    self.sent.append(step)
                    self.now += self._takes
                    reply = next(self._replies)
                step = steps.send(reply)
        except StopIteration as end:
            result: Reply = end.value
            return result


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_a_delay_doubles_up_to_a_limit_and_is_spread_over_its_upper_half(
    retry: int, random: float
) -> None:
    whole = min(MAX_DELAY, FIRST_DELAY * 2 ** min(retry, 10))
    # The largest of these numbers below one is rounded up.
    assert whole / 2 <= backoff(retry, random) <= whole


def test_two_that_fail_together_do_not_come_back_together() -> None:
    assert backoff(3, 0.1) != backoff(3, 0.2)


@pytest.mark.parametrize("status", [200, 202, 204, 301, 400, 401, 403, 404, 409, 412, 413, 422])
@pytest.mark.parametrize("request_", [SAFE, UNSAFE], ids=["safe", "unsafe"])
def test_an_answer_that_no_retry_changes_is_the_last(request_: Request, status: int) -> None:
    assert pause(request_, answer(status)) is None


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504, 599])
def test_a_failure_of_the_server_is_retried_only_if_that_can_do_no_harm(status: int) -> None:
    assert pause(SAFE, answer(status)) is not None
    assert pause(UNSAFE, answer(status)) is None


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.WriteError("broken pipe"),
        httpx.RemoteProtocolError("disconnected without an answer"),
        httpx.DecodingError("cut short"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_answer_that_was_lost_is_asked_for_again_only_if_that_can_do_no_harm(
    error: httpx.RequestError,
) -> None:
    assert pause(SAFE, error) is not None
    assert pause(UNSAFE, error) is None


@pytest.mark.parametrize(
    "reply",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("nobody there"),
        httpx.PoolTimeout("all taken"),
        answer(429),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_what_the_server_cannot_have_done_is_always_retried(reply: Reply) -> None:
    assert pause(SAFE, reply) is not None
    assert pause(UNSAFE, reply) is not None


@pytest.mark.parametrize("error", [httpx.UnsupportedProtocol, httpx.LocalProtocolError])
def test_a_request_that_cannot_be_sent_at_all_is_not_retried(
    error: type[httpx.TransportError],
) -> None:
    assert pause(SAFE, error("")) is None


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(status: int) -> None:
    seconds = pause(SAFE, answer(status, Retry_After="7"))
    assert seconds is not None
    assert 7 <= seconds <= 7 + FIRST_DELAY


def test_a_retry_after_beyond_the_total_ends_it_at_once() -> None:
    assert pause(SAFE, answer(429, Retry_After="61")) is None
    assert pause(SAFE, answer(429, Retry_After="30"), elapsed=31) is None


def test_no_retry_begins_after_the_total() -> None:
    script = Script([httpx.ReadTimeout("")] * 100, takes=15)
    script.run(SAFE, Retries(count=99, total=60))
    assert len(script.sent) == 4
    assert script.now <= 1000 + 60 + 15


def test_so_many_retries_and_no_more() -> None:
    script = Script([answer(500)] * 10)
    reply = script.run(SAFE)
    assert isinstance(reply, httpx.Response)
    assert reply.status_code == 500
    assert len(script.sent) == 1 + RETRIES.count
    assert script.pauses == sorted(script.pauses)


def test_no_retries_at_all() -> None:
    script = Script([httpx.ConnectError("")])
    script.run(SAFE, Retries(count=0))
    assert len(script.sent) == 1


def test_each_try_sends_the_very_same_request() -> None:
    script = Script([httpx.ReadTimeout(""), answer(503), answer(202)])
    script.run(SAFE)
    assert script.sent == [SAFE] * 3


NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 5 ", 5.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("٣", None),
        ("Sun, 99 Mar 2026", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    response = httpx.Response(503, headers={"Retry-After": text.encode()})
    assert retry_after(response, NOW) == seconds


@given(st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40))
def test_any_retry_after_can_be_read_or_is_nothing(text: str) -> None:
    response = httpx.Response(503, headers={"Retry-After": text.encode("latin-1")})
    seconds = retry_after(response)
    assert seconds is None or seconds >= 0
