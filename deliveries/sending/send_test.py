"""Test events: one signed request to a subscription, at once, to see what its receiver says.

Nothing is recorded but an entry of the audit: no event, no delivery, no attempt. The circuit
neither counts it nor stops it, so that a paused or tripped subscription can be tried before it is
made active again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import requests
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.views.decorators.debug import sensitive_variables

from deliveries.body import build_body
from deliveries.judging.response import broken, judge_response
from deliveries.sending.request import signed_post
from deliveries.transport import Exchange, text_for_operators, transport
from subscriptions import audit
from subscriptions.conf import conf
from subscriptions.ids import uuid7
from subscriptions.models import Subscription
from subscriptions.secrets import crypto
from subscriptions.topics.rules import validate_topic
from subscriptions.validators import sendable_headers

TEST_TOPIC = "webhooks.test"
# How long after a request's deadline its result is waited for, in seconds.
PAST_DEADLINE = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tested:
    """What came of a test event. `status_code` None: there was no answer; `error` says why.

    `response_body` is the beginning of the answer, harmless to look at.
    """

    event_id: str
    status_code: int | None
    error: str
    response_body: str
    duration_ms: int
    remote_address: str

    @property
    def succeeded(self) -> bool:
        return self.status_code is not None and 200 <= self.status_code < 300

    def __str__(self) -> str:
        if self.status_code is None:
            return self.error
        text = " ".join(self.response_body.split())[:200]
        answered = f"answered {self.status_code} in {self.duration_ms} ms"
        return f"{answered}: {text}" if text else answered


def send_test(subscription: Subscription, *, topic: str = TEST_TOPIC) -> Tested:
    """Send one test event and wait for the answer, for `request_timeout` seconds at most.

    Raises `InvalidTopic`. All that can go wrong with the request is in what comes back.
    """
    return send_tests([subscription], topic=topic)[0]


def send_tests(subscriptions: Sequence[Subscription], *, topic: str = TEST_TOPIC) -> list[Tested]:
    """`send_test` for many, all at the same time; the results are in the order asked."""
    validate_topic(topic)
    waiting = [_Test(subscription, topic) for subscription in subscriptions]
    if not connection.in_atomic_block:
        # Receivers may take their time, and others want the connection meanwhile.
        connection.close()
    for test in waiting:
        test.begin()
    results = [test.wait() for test in waiting]
    audit.record(
        "tested",
        [
            audit.Entry(subscription.pk, {"topic": topic, "answer": _harmless(str(tested))})
            for subscription, tested in zip(subscriptions, results, strict=True)
        ],
    )
    return results


def _harmless(text: str) -> str:
    return text_for_operators(text.encode(errors="replace"))


class _Test:
    def __init__(self, subscription: Subscription, topic: str) -> None:
        now = datetime.now(UTC)
        self._event_id = str(uuid7())
        self._done = threading.Event()
        self._tested: Tested | None = None
        self._request: requests.PreparedRequest | None = None
        try:
            body = build_body(
                self._event_id,
                now,
                topic,
                "test",
                {"message": "This is a test event.", "subscription": subscription.name},
            )
            self._request = self._signed(subscription, topic, body)
        except (crypto.SecretUnreadable, ImproperlyConfigured, ValueError) as error:
            self._end(error=str(error))
        except Exception as error:
            self._fail("sign", error)

    # Django's error reports show the variables of every frame, and of those that it calls.
    @sensitive_variables()
    def _signed(
        self, subscription: Subscription, topic: str, body: bytes
    ) -> requests.PreparedRequest:
        secrets = [
            crypto.decrypt(ciphertext).decode()
            for ciphertext in subscription.secrets.live().values_list("ciphertext", flat=True)
        ]
        if not secrets:
            raise ValueError("the subscription has no signing secret; add one")
        return signed_post(
            subscription.url,
            sendable_headers(subscription.headers),
            secrets,
            event_id=self._event_id,
            topic=topic,
            body=body,
            timestamp=int(time.time()),
        )

    def begin(self) -> None:
        if self._request is None:
            return
        try:
            transport().submit(self._request, self._answered)
        except (requests.RequestException, OSError) as error:
            self._end(error=f"the request could not be made: {error}")

    def wait(self) -> Tested:
        # The transport ends each request at its deadline; this is for a transport that does not.
        if not self._done.wait(conf().request_timeout + PAST_DEADLINE):
            self._end(error="the transport brought back nothing; the log may say why")
        assert self._tested is not None
        return self._tested

    def _answered(self, answer: Exchange) -> None:
        try:
            judged = judge_response(answer)
        except Exception as error:
            self._fail("judge", error)
            return
        self._end(
            status_code=judged.status_code,
            error=judged.error,
            response_body=judged.response_body,
            duration_ms=judged.duration_ms,
            remote_address=judged.remote_address,
        )

    def _fail(self, what: str, error: Exception) -> None:
        logger.error("A test event could not be handled (%s).", what, exc_info=error)
        self._end(error=broken(error).error)

    def _end(
        self,
        *,
        status_code: int | None = None,
        error: str = "",
        response_body: str = "",
        duration_ms: int = 0,
        remote_address: str = "",
    ) -> None:
        self._tested = Tested(
            self._event_id, status_code, error, response_body, duration_ms, remote_address
        )
        self._done.set()
