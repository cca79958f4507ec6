"""The request that is sent, and what is made of answers. The wire does not matter here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator

import pytest
import requests
import responses
from requests.structures import CaseInsensitiveDict

from deliveries.judging.policy import Verdict
from deliveries.judging.response import judge_response
from deliveries.sending.request import signed_post
from deliveries.transport import Exchange, HostNotFound, ResolverUnavailable

SECRET = "whsec_" + "QUJD" * 8


def request(headers: dict[str, str] | None = None) -> requests.PreparedRequest:
    return signed_post(
        "https://receiver.example.com/hook",
        {"X-Team": "blue"} if headers is None else headers,
        [SECRET],
        event_id="event-1",
        topic="a.b",
        body=b'{"v":1}',
        timestamp=1_700_000_000,
    )


@pytest.fixture
def receiver() -> Iterator[responses.RequestsMock]:
    """Answers in the vocabulary that the transport speaks; nothing is opened."""
    with responses.RequestsMock() as mock:
        yield mock


def answer(response: requests.Response) -> Exchange:
    return Exchange(response, None, 0.25, "192.0.2.1")


def send(prepared: requests.PreparedRequest) -> requests.Response:
    prepared.headers = CaseInsensitiveDict(prepared.headers)
    return requests.Session().send(prepared)


def test_a_request_carries_both_signatures_and_the_subscriptions_own_headers(
    receiver: responses.RequestsMock,
) -> None:
    expected = hmac.new(SECRET.encode(), b'{"v":1}', hashlib.sha256).hexdigest()
    receiver.post(
        "https://receiver.example.com/hook",
        match=[
            responses.matchers.header_matcher(
                {
                    "Content-Type": "application/json",
                    "X-Team": "blue",
                    "webhook-id": "event-1",
                    "webhook-timestamp": "1700000000",
                    "X-Webhook-Signature": f"sha256={expected}",
                    "X-Webhook-Event-Id": "event-1",
                    "X-Webhook-Event-Topic": "a.b",
                    "X-Webhook-Timestamp": "1700000000",
                }
            )
        ],
    )
    judged = judge_response(answer(send(request())))
    assert judged.outcome.verdict is Verdict.SUCCESS
    assert judged.duration_ms == 250


def test_an_answer_is_described_for_operators(receiver: responses.RequestsMock) -> None:
    receiver.post(
        "https://receiver.example.com/hook",
        status=503,
        body="down for\nmaintenance\x1b[2J",
        headers={"Retry-After": "120"},
    )
    judged = judge_response(answer(send(request())))
    assert judged.code == "http"
    assert judged.status_code == 503
    assert judged.error.startswith("503 service unavailable: down for maintenance")
    assert "\x1b" not in judged.error
    assert judged.outcome.excused
    assert judged.outcome.retry_after == 120


@pytest.mark.parametrize("status", [299, 404, 410, 418, 429, 500, 599])
def test_every_status_has_a_description(receiver: responses.RequestsMock, status: int) -> None:
    receiver.post("https://receiver.example.com/hook", status=status)
    judged = judge_response(answer(send(request())))
    assert judged.status_code == status
    assert judged.error == "" if status < 300 else judged.error.startswith(str(status))


@pytest.mark.parametrize(
    ("error", "code", "own"),
    [
        (HostNotFound("there is no host named x"), "dns", False),
        (ResolverUnavailable("the name servers did not answer"), "own_dns", True),
        (requests.ReadTimeout("no answer within 10 s"), "timeout", False),
    ],
)
def test_no_answer_is_described_and_blamed_on_the_right_one(
    error: requests.RequestException, code: str, own: bool
) -> None:
    judged = judge_response(Exchange(None, error, 1.0, ""))
    assert (judged.code, judged.error, judged.status_code) == (code, str(error), None)
    assert judged.outcome.own_fault is own
