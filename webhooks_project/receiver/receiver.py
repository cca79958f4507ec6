"""A receiver of webhooks on this machine, for development, demonstrations and tests.

    with Receiver(respond=lambda received: Answer(503)) as receiver:
        ...  # send something to receiver.url
        assert receiver.wait_for(1, timeout=10)
        print(receiver.received[0].topic)

It verifies signatures, answers what it is set to, and can be dead (`stop`), silent (`pause`)
and back again (`start`) on the same port. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote

from deliveries.sending.signing import BadSignature, verify
from subscriptions.conf import conf
from subscriptions.secrets import signing_secrets
from webhooks_project.receiver.http import Address, Answer, Connection, Request

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Received:
    """One request. Headers have the names that were sent; look them up with `header`.

    `verified` says whether a known secret signed it; None if the receiver knows no secret.
    `problem` is why not. `at` is by `time.monotonic()`. `answered` is the status, 0 while
    `respond` decides.
    """

    id: str
    topic: str
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    verified: bool | None
    problem: str
    at: float
    arrived: datetime
    answered: int = 0

    def header(self, name: str) -> str:
        """The header of that name in any case; "" if there is none."""
        lower = name.lower()
        return next((value for key, value in self.headers.items() if key.lower() == lower), "")


def accept(received: Received) -> Answer:
    """What a well-behaved receiver answers: 401 to a bad signature, 200 to all else."""
    if received.verified is False:
        return Answer(401, received.problem.encode())
    return Answer()


class Receiver(Address):
    """A receiver on 127.0.0.1, in a thread of its own; a context manager.

    `port` 0 takes any free one; `OSError` if it is taken. `url` is known from the beginning.
    `secrets` (`whsec_…`) verify the requests; `InvalidSecret` if one is none. `respond` decides
    the answer (default: `accept`); `on_request` is called with each request once its answer is
    decided. Both are called on the receiver's thread, one request after the other, and must not
    block; an exception in one is logged, and `respond`'s is answered 500. Without `keep`,
    `received` stays empty and only `count` grows.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        secrets: Sequence[str] = (),
        respond: Callable[[Received], Answer] | None = None,
        on_request: Callable[[Received], None] | None = None,
        keep: bool = True,
    ) -> None:
        self._secrets = [signing_secrets.parse(secret) for secret in secrets]
        super().__init__(port=port)
        self.received: list[Received] = []
        self.count = 0
        self._respond = respond or accept
        self._on_request = on_request
        self._keep = keep
        self._topic_header = f"{conf().header_prefix}-event-topic".lower()
        self._arrived = threading.Condition()
        self._targets: list[int] = []

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_secret(self, secret: str) -> None:
        """Verify with this secret too: a subscription's is known only after its URL."""
        self._secrets = [*self._secrets, signing_secrets.parse(secret)]

    def wait_for(
        self, count_or_predicate: int | Callable[[list[Received]], object], timeout: float
    ) -> bool:
        """Wait until that many requests came, or until the predicate of `received` holds.

        Returns whether it did within `timeout` seconds.
        """
        if isinstance(count_or_predicate, int):
            target = count_or_predicate

            def holds() -> bool:
                return self.count >= target
        else:
            target, predicate = 0, count_or_predicate

            def holds() -> bool:
                return bool(predicate(self.received))

        with self._arrived:
            self._targets.append(target)
            try:
                return self._arrived.wait_for(holds, timeout)
            finally:
                self._targets.remove(target)

    def take(self, connection: Connection, request: Request) -> Answer:
        """Record one request and decide its answer."""
        body, headers = request.body, request.texts()
        lower = {name.lower(): value for name, value in headers.items()}
        verified, problem = self._verify(body, lower)
        received = Received(
            id=lower.get("webhook-id", ""),
            topic=unquote(lower.get(self._topic_header, "")),
            body=body,
            headers=headers,
            verified=verified,
            problem=problem,
            at=time.monotonic(),
            arrived=datetime.now(UTC),
        )
        try:
            answer = self._respond(received)
        except Exception:
            logger.exception("The receiver's `respond` failed; it answers 500")
            answer = Answer(500)
        received.answered = answer.status
        with self._arrived:
            self.count += 1
            if self._keep:
                self.received.append(received)
            if self._targets and self.count >= min(self._targets):
                self._arrived.notify_all()
        if self._on_request is not None:
            try:
                self._on_request(received)
            except Exception:
                logger.exception("The receiver's `on_request` failed")
        return answer

    def _verify(self, body: bytes, headers: dict[str, str]) -> tuple[bool | None, str]:
        if not self._secrets:
            return None, ""
        try:
            verify(body, headers, self._secrets, now=time.time())
        except BadSignature as error:
            return False, str(error)
        return True, ""
