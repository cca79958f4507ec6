"""What can be done with one subscription: test, rotate, reset, replay; and how it goes."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Annotated, Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Max
from django.http import HttpResponse, JsonResponse
from django.views.decorators.debug import sensitive_variables
from ninja import Router
from ninja.params.models import Body
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from api.auth import scope
from api.pages import bad_cursor
from api.problems import Problem, invalid, problems
from api.v1.schemas_subscriptions import (
    Replay,
    Replayed,
    Reset,
    RotatedSecret,
    Rotation,
    ShownSubscription,
    Stats,
    TestAnswer,
    TestRequest,
)
from api.v1.subscriptions import (
    ETAG,
    IfMatch,
    Request,
    SubscriptionId,
    answer,
    find,
    refusals,
    with_headers,
)
from deliveries.keeping.backlog import Backlog, backlogs, backoff, being_discarded, is_sending
from deliveries.keeping.recent import recent
from deliveries.keeping.replay import Chosen, Position, replay_some
from deliveries.models import Lane
from deliveries.sending.send_test import send_test
from subscriptions import circuit
from subscriptions.secrets import crypto
from subscriptions.topics.rules import InvalidTopic, validate_topic

router = Router(tags=["subscriptions"])

# A test waits for its receiver, in a thread of the web process: slow receivers must leave threads
# for everybody else.
MAX_TESTS_AT_ONCE = 4
# So that one tenant's slow receivers leave places for others, too.
MAX_TESTS_OF_A_TENANT = 2
_tests: Counter[str] = Counter()
_tests_lock = threading.Lock()
# Deliveries that one request replays, in batches of 1,000: about a second of work.
BATCHES = 10


def _or_none(made: type[BaseModel]) -> Any:
    """A body that may be left out, without a default in the document, where it would be wrong."""
    return Body(PydanticUndefined, default_factory=made)


@router.post(
    "/{subscription_id}/test",
    auth=scope("subscriptions:write"),
    response={200: TestAnswer, **problems(404, 422, 429)},
    summary="Send a test event",
)
def send_test_event(
    request: Request,
    subscription_id: SubscriptionId,
    body: Annotated[TestRequest, _or_none(TestRequest)],
) -> Any:
    """Send one signed test event, at once and once, and wait for what the receiver says.

    It takes at most WEBHOOKS_REQUEST_TIMEOUT (10 s) and a little. Works on paused and tripped
    subscriptions too; only the audit records it, and the circuit does not count it. The answer is
    200 whatever the receiver says: `succeeded` is what to look at.
    """
    subscription = find(request, subscription_id)
    with _one_of_the_tests(subscription.tenant):
        try:
            # Closes the connection to the database before it waits.
            return send_test(subscription, topic=body.topic)
        except InvalidTopic as error:
            raise invalid([{"pointer": "/topic", "detail": str(error)}]) from None


@contextmanager
def _one_of_the_tests(tenant: str) -> Iterator[None]:
    with _tests_lock:
        if _tests.total() >= MAX_TESTS_AT_ONCE or _tests[tenant] >= MAX_TESTS_OF_A_TENANT:
            raise Problem(
                429,
                "too-many-tests",
                "Too many tests are waiting for their receivers",
                f"This process sends {MAX_TESTS_AT_ONCE} tests at a time, "
                f"{MAX_TESTS_OF_A_TENANT} of them for one tenant. Try again in a second.",
                headers={"Retry-After": "1"},
            )
        _tests[tenant] += 1
    try:
        yield
    finally:
        with _tests_lock:
            _tests[tenant] -= 1
            if not _tests[tenant]:
                del _tests[tenant]


@router.post(
    "/{subscription_id}/rotate-secret",
    auth=scope("subscriptions:write"),
    response={200: RotatedSecret, **problems(404, 409, 422)},
    summary="Rotate the signing secret",
)
def rotate_secret(
    request: Request,
    subscription_id: SubscriptionId,
    body: Annotated[Rotation, _or_none(Rotation)],
) -> HttpResponse:
    """Give the subscription a new signing secret, which is in this answer and in no other.

    Until the old ones end, each request carries a signature by each secret. **409**: as many are
    in force as may be; let them end at once with an `overlap` of 0, or wait until one has ended.
    """
    return _rotate(request, subscription_id, body)


@sensitive_variables()
def _rotate(request: Request, subscription_id: str, body: Rotation) -> HttpResponse:
    values = body.model_dump(exclude_unset=True)
    given = values.get("secret")
    with refusals(), transaction.atomic():
        # Two rotations at the same moment are done one after the other.
        subscription = find(request, subscription_id, lock="change")
        old = list(subscription.secrets.live().values_list("pk", flat=True))
        try:
            secret = subscription.rotate_secret(
                given.get_secret_value() if given else None, overlap=values.get("overlap")
            )
        except ValidationError as error:
            title, detail = "Too many secrets are in force", " ".join(error.messages)
            raise Problem(409, "too-many-secrets", title, detail) from None
        ends = subscription.secrets.filter(pk__in=old).aggregate(ends=Max("expires_at"))["ends"]
    shown = RotatedSecret(secret=None if given else secret, old_secrets_end_at=ends)
    response = JsonResponse(shown.model_dump())
    response["Cache-Control"] = "no-store"
    return response


@router.post(
    "/{subscription_id}/reset",
    auth=scope("subscriptions:write"),
    response={200: ShownSubscription, **problems(404, 412, 422)},
    summary="Make a subscription active again",
    openapi_extra=with_headers(200, ETAG),
)
def reset_subscription(
    request: Request,
    response: HttpResponse,
    subscription_id: SubscriptionId,
    if_match: IfMatch,
    body: Annotated[Reset, _or_none(Reset)],
) -> Any:
    """Enable a tripped or paused subscription, and say what becomes of what was held.

    As `enabled: true` does, its circuit is reset. An active one that is backing off is sent to
    at once. Harmless on any other, and a second time.
    """
    with transaction.atomic():
        subscription = find(request, subscription_id, if_match=if_match, lock="change")
        circuit.reset([subscription.pk], discard_held=body.held == "discard")
        subscription.refresh_from_db()
    return answer(response, subscription)


@router.post(
    "/{subscription_id}/replay",
    auth=scope("subscriptions:write"),
    response={200: Replayed, **problems(404, 422)},
    summary="Send finished deliveries again",
)
def replay_deliveries(
    request: Request,
    subscription_id: SubscriptionId,
    body: Annotated[Replay, _or_none(Replay)],
) -> Any:
    """Send finished deliveries again, with the `webhook-id` that they had; oldest first.

    One request looks at 10,000 deliveries at most, and says in `next_cursor` where to go on. What
    it has answered for is done; what fails again, or is published, after the first request is
    not taken by those that go on.
    """
    subscription = find(request, subscription_id)
    if body.topic is not None:
        try:
            validate_topic(body.topic)
        except InvalidTopic as error:
            raise invalid([{"pointer": "/topic", "detail": str(error)}]) from None
    chosen = Chosen(
        subscription,
        statuses=body.status,
        since=body.since,
        until=body.until,
        topic=body.topic,
        by_id=True,
    )
    replayed, position = replay_some(chosen, _position(chosen, body.cursor), BATCHES)
    cursor = _cursor(chosen, position) if position else None
    return {**replayed._asdict(), "next_cursor": cursor}


def _choice(chosen: Chosen) -> list[Any]:
    since, until = (
        moment and moment.astimezone(UTC).isoformat() for moment in (chosen.since, chosen.until)
    )
    statuses = sorted(set(chosen.statuses))
    return [str(chosen.subscription.pk), statuses, since, until, chosen.topic]


def _cursor(chosen: Chosen, position: Position) -> str:
    """Of this replay alone. Encrypted: the newest delivery may be a stranger's."""
    return crypto.encrypt(json.dumps([_choice(chosen), position]).encode())


def _position(chosen: Chosen, cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        choice, position = json.loads(crypto.decrypt(cursor))
        if choice == _choice(chosen):
            return Position(*position)
    except (crypto.SecretUnreadable, ValueError):
        pass
    raise bad_cursor(
        "Send the next_cursor of the answer before as it is, with the same choice, or none to "
        "begin.",
        {"pointer": "/cursor", "detail": "It is not a next_cursor of this replay."},
    )


@router.get(
    "/{subscription_id}/stats",
    auth=scope("subscriptions:read"),
    response={200: Stats, **problems(404)},
    summary="See how it goes with a subscription",
)
def subscription_stats(request: Request, subscription_id: SubscriptionId) -> Any:
    """What is waiting, whether it is being sent just now, and how the newest deliveries went."""
    subscription = find(request, subscription_id)
    backlog = backlogs([subscription.pk]).get(subscription.pk, Backlog())
    lane = Lane.objects.filter(pk=subscription.pk).first()
    waits = None if subscription.state == "paused" else backoff(lane, subscription.last_error)
    return {
        "pending": backlog.pending,
        "held": backlog.held,
        "discarding": being_discarded(lane),
        "backing_off_until": waits.until if waits else None,
        "backing_off_because": waits.because if waits else None,
        "failed_attempts": lane.failures if lane else 0,
        "sending_until": lane.lease_until if lane and is_sending(lane) else None,
        "recent": recent(subscription.pk)._asdict(),
    }
