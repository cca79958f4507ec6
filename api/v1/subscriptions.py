"""`/subscriptions`: make, list, read, change and delete them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal, cast

from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.crypto import salted_hmac
from django.utils.http import parse_etags
from django.views.decorators.debug import sensitive_variables
from ninja import Header, Path, Query, Router, Status
from psycopg import errors as postgresql
from pydantic import Field, SecretStr

from api.auth import scope
from api.keys import Caller
from api.pages import Cursor, Limit, Listed, page
from api.problems import Problem, from_validation_error, invalid, not_found, problems
from api.v1.schemas_subscriptions import (
    MadeSubscription,
    NewSubscription,
    ShownSubscription,
    State,
    SubscriptionChange,
)
from subscriptions import circuit
from subscriptions.conf import conf
from subscriptions.models import SigningSecret, Subscription, SubscriptionQuerySet
from subscriptions.models import create_subscription as create
from subscriptions.secrets.signing_secrets import InvalidSecret
from subscriptions.tenants import InvalidTenant, validate_tenant
from subscriptions.topics.rules import (
    InvalidPattern,
    InvalidTopic,
    validate_pattern,
    validate_topic,
)
from subscriptions.validators import sendable_headers

router = Router(tags=["subscriptions"])

# What an operator can set, and what a trip changes: the tag says whether somebody else has changed
# it. The counters of the circuit are left out: a busy subscription changes them every second.
_TAGGED = (
    "tenant", "all_tenants", "name", "url", "topic_patterns", "headers", "max_in_flight",
    "recovery", "enabled", "auto_disabled_at",
)  # fmt: skip


class Request(HttpRequest):
    auth: Caller


SubscriptionId = Annotated[
    str,
    Field(json_schema_extra={"format": "uuid"}),
    Path(..., description="The id of a subscription."),
]
IfMatch = Annotated[
    str | None,
    Header(
        None,
        alias="If-Match",
        description="The `ETag` of the subscription as you know it: if it has been changed since, "
        "nothing is done, and the answer is 412.",
    ),
]
ETAG: dict[str, Any] = {
    "ETag": {
        "description": "Changes with what can be set and with the state, not with the counters. "
        "For `If-Match`.",
        "schema": {"type": "string"},
    }
}


def with_headers(status: int, headers: dict[str, Any]) -> dict[str, Any]:
    """For `openapi_extra`: the headers of an answer."""
    return {"responses": {status: {"headers": headers}}}


@router.post(
    "",
    auth=scope("subscriptions:write"),
    response={201: MadeSubscription, **problems(403, 409, 422)},
    summary="Make a subscription",
    openapi_extra=with_headers(
        201,
        ETAG | {"Location": {"description": "Where it is read.", "schema": {"type": "string"}}},
    ),
)
def create_subscription(request: Request, body: NewSubscription) -> HttpResponse:
    """Make a subscription and its signing secret, which is in this answer and in no other.

    From the moment of the answer on, it gets every event that one of its patterns matches.
    """
    return _create(request, body)


# Django's error reports show the variables of every frame: the answer is made where none is shown.
@sensitive_variables()
def _create(request: Request, body: NewSubscription) -> HttpResponse:
    caller = request.auth
    values = body.model_dump(exclude_unset=True)
    values["tenant"] = caller.tenant_for(values.get("tenant"))
    given: SecretStr | None = values.pop("secret", None)
    patterns = _patterns(values)
    _refuse_all_tenants(caller, values)
    with refusals(patterns):
        subscription, secret = create(
            secret=given.get_secret_value() if given else None,
            topic_patterns=_each_once(patterns),
            **values,
        )
    shown = MadeSubscription(**as_shown(subscription), secret=None if given else secret)
    response = JsonResponse(shown.model_dump(), status=201)
    response["Location"] = f"{request.path.rstrip('/')}/{subscription.pk}"
    response["Cache-Control"] = "no-store"
    response["ETag"] = etag(subscription)
    return response


@router.get(
    "",
    auth=scope("subscriptions:read"),
    response={200: Listed[ShownSubscription], **problems(422)},
    summary="List subscriptions",
)
def list_subscriptions(
    request: Request,
    state: Annotated[State | None, Query(None, description="Only those in this state.")],
    topic: Annotated[
        str | None,
        Query(
            None,
            description="Only those that an event of this topic would reach: an active one gets a "
            "delivery, a tripped one a held delivery, a paused one none.",
            example="order.created",
        ),
    ],
    host: Annotated[
        str | None,
        Query(
            None,
            description="Only those whose URL has this host, with its port if you give one, as it "
            "is written in the URL; case does not count.",
            example="billing.example.com",
        ),
    ],
    tenant: Annotated[
        str | None,
        Query(None, description="Only those of this tenant; empty: of the application itself."),
    ],
    cursor: Cursor,
    limit: Limit,
) -> Any:
    """The subscriptions that the key may see, newest first."""
    chosen = visible(request)
    if state is not None:
        chosen = getattr(chosen, state)()
    if tenant is not None:
        try:
            chosen = chosen.filter(tenant=validate_tenant(tenant))
        except InvalidTenant as error:
            raise invalid([{"parameter": "tenant", "detail": str(error)}]) from None
    if topic is not None:
        try:
            chosen = chosen.reached_by(validate_topic(topic))
        except InvalidTopic as error:
            raise invalid([{"parameter": "topic", "detail": str(error)}]) from None
    if host is not None:
        try:
            chosen = chosen.at_host(host)
        except ValueError as error:
            raise invalid([{"parameter": "host", "detail": str(error)}]) from None
    found = page(chosen, by=("-id",), cursor=cursor, limit=limit)
    return {"data": map(as_shown, found.rows), "next_cursor": found.next_cursor}


@router.get(
    "/{subscription_id}",
    auth=scope("subscriptions:read"),
    response={200: ShownSubscription, **problems(404)},
    summary="Read a subscription",
    openapi_extra=with_headers(200, ETAG),
)
def read_subscription(
    request: Request, response: HttpResponse, subscription_id: SubscriptionId
) -> Any:
    """A subscription, with its state and what there is to warn of. Never with a secret."""
    return answer(response, find(request, subscription_id))


@router.patch(
    "/{subscription_id}",
    auth=scope("subscriptions:write"),
    response={200: ShownSubscription, **problems(404, 409, 412, 422)},
    summary="Change a subscription",
    openapi_extra=with_headers(200, ETAG),
)
def change_subscription(
    request: Request,
    response: HttpResponse,
    subscription_id: SubscriptionId,
    body: SubscriptionChange,
    if_match: IfMatch,
) -> Any:
    """Change what the body names, and nothing else; all of it or, if some is refused, nothing.

    `topic_patterns`, `groups` and `headers` replace what was there. Another `url` begins a new
    circuit epoch: results of requests to the old one count for nothing. `tenant` and
    `all_tenants` never change: make a new subscription instead.
    """
    values = body.model_dump(exclude_unset=True)
    patterns = None
    if {"topic_patterns", "groups"} & values.keys():
        patterns = _patterns(values)
        values["topic_patterns"] = _each_once(patterns)
    with refusals(patterns), transaction.atomic():
        subscription = find(request, subscription_id, lock="change")
        tag, was_tripped = etag(subscription), subscription.state == "tripped"
        for name, value in values.items():
            setattr(subscription, name, value)
        # What is not changed is not judged: a subscription whose URL is forbidden since can
        # still be paused.
        subscription.full_clean(
            exclude={field.name for field in subscription._meta.fields} - values.keys()
        )
        # What would be refused anyhow is refused for that (RFC 9110, section 13.2.1).
        require_match(if_match, tag)
        subscription.save()
        if was_tripped and values.get("enabled") is False:
            # To save that changes nothing: a tripped one is disabled already.
            circuit.pause([subscription.pk])
            subscription.refresh_from_db()
    return answer(response, subscription)


@router.delete(
    "/{subscription_id}",
    auth=scope("subscriptions:write"),
    response={204: None, **problems(404, 412)},
    summary="Delete a subscription",
)
def delete_subscription(
    request: Request, subscription_id: SubscriptionId, if_match: IfMatch
) -> Any:
    """Delete a subscription and its secrets.

    Its pending and held deliveries are discarded, and stay listed, with their reason, as long as
    discarded ones are kept. A request that is on its way just now may still arrive.
    """
    with transaction.atomic():
        find(request, subscription_id, if_match=if_match, lock="delete").delete()
    return Status(204, None)


# What the routes have in common.


def visible(request: Request) -> SubscriptionQuerySet:
    """The subscriptions that the key may see.

    One for all tenants has their events: a key that is bound to the application itself could send
    them elsewhere by a change of its URL.
    """
    caller = request.auth
    secrets = SigningSecret.objects.live().filter(subscription=OuterRef("pk"))
    found = caller.sees(Subscription.objects.annotate(has_secret=Exists(secrets)))
    if caller.tenant is not None:
        found = found.filter(all_tenants=False)
    return cast("SubscriptionQuerySet", found)


def find(
    request: Request,
    subscription_id: str,
    *,
    if_match: str | None = None,
    lock: Literal["change", "delete"] | None = None,
) -> Subscription:
    """The subscription, locked if it is to be changed or deleted (inside a transaction).

    Raises `Problem`: 404, also for a stranger's; 412 if `if_match` is no tag of it.
    """
    chosen = visible(request)
    if lock:
        chosen = chosen.select_for_update(of=("self",), no_key=lock == "change")
    try:
        subscription = chosen.get(pk=uuid.UUID(subscription_id))
    except (ValueError, Subscription.DoesNotExist):
        raise not_found(f"No subscription has the id {subscription_id[:100]!r}.") from None
    require_match(if_match, etag(subscription))
    return subscription


def require_match(if_match: str | None, tag: str) -> None:
    """Raises `Problem` (412) if there is an `If-Match`, and `tag` is none of its tags."""
    if if_match is not None and not {"*", tag} & set(parse_etags(if_match)):
        raise Problem(
            412,
            "changed-meanwhile",
            "It has been changed since you read it",
            "The subscription is not as If-Match says. Read it again, and decide again.",
            headers={"ETag": tag},
        )


def answer(response: HttpResponse, subscription: Subscription) -> dict[str, Any]:
    """A subscription as the body of an answer, and its tag as a header."""
    response["ETag"] = etag(subscription)
    return as_shown(subscription)


def etag(subscription: Subscription) -> str:
    values = json.dumps(
        [getattr(subscription, name) for name in _TAGGED], sort_keys=True, default=str
    )
    # With a key: headers may hold tokens, which nobody should guess by their hash.
    return f'"{salted_hmac("api.subscription", values, algorithm="sha256").hexdigest()[:32]}"'


def as_shown(subscription: Subscription) -> dict[str, Any]:
    """What is shown of a subscription, whatever somebody has written past the validation."""
    headers, ignored = {}, True
    if isinstance(subscription.headers, dict):
        headers = {name: str(text) for name, text in subscription.headers.items()}
        with suppress(ValueError):
            ignored = len(sendable_headers(subscription.headers)) < len(headers)
    warnings = {
        "http": subscription.url.lower().startswith("http:"),
        # A new one has its secret.
        "no-secret": not getattr(subscription, "has_secret", True),
        "ignored-headers": ignored,
    }
    return {
        **{name: getattr(subscription, name) for name in _PLAIN},
        "id": str(subscription.pk),
        "topic_patterns": list(map(str, subscription.topic_patterns)),
        "headers": headers,
        "warnings": [name for name, warns in warnings.items() if warns],
    }


_PLAIN = ShownSubscription.model_fields.keys() - {"id", "topic_patterns", "headers", "warnings"}


def _patterns(values: dict[str, Any]) -> list[str]:
    """The patterns that a body gives, and those of its groups, taking both out of it."""
    known = conf().topic_groups
    patterns = list(values.pop("topic_patterns", []))
    unknown = []
    for place, name in enumerate(values.pop("groups", [])):
        if name in known:
            patterns += known[name]
        else:
            names = ", ".join(map(repr, known)) or "none; WEBHOOKS_TOPIC_GROUPS defines them"
            detail = f"There is no group {name[:80]!r}. The groups are: {names}."
            unknown.append({"pointer": f"/groups/{place}", "detail": detail})
    if unknown:
        raise invalid(unknown)
    return patterns


def _each_once(patterns: list[str]) -> list[str]:
    return list(dict.fromkeys(patterns))


def _refuse_all_tenants(caller: Caller, values: dict[str, Any]) -> None:
    if values.get("all_tenants") and caller.tenant is not None:
        raise Problem(
            403,
            "other-tenant",
            "The key is bound to another tenant",
            "A subscription for all tenants gets their events; only a key that is bound to no "
            "tenant can make one.",
        )


@contextmanager
def refusals(patterns: Iterable[Any] | None = None) -> Iterator[None]:
    """What the model refuses is a `Problem`: 409 for a name that is taken, 422 for all else."""
    try:
        yield
    except InvalidSecret as error:
        raise invalid([{"pointer": "/secret", "detail": str(error)}]) from None
    except ValidationError as error:
        raise _refused(error, list(patterns or [])) from None
    except IntegrityError as error:
        # Somebody else took the name in that very moment.
        if not isinstance(error.__cause__, postgresql.UniqueViolation):
            raise
        raise _duplicate_name() from None


def _refused(error: ValidationError, patterns: list[Any]) -> Problem:
    by_field = error.error_dict
    if {one.code for errors in by_field.values() for one in errors} == {"unique"}:
        return _duplicate_name()
    faults = []
    for place, pattern in enumerate(patterns):
        try:
            validate_pattern(pattern)
        except InvalidPattern as fault:
            faults.append({"pointer": f"/topic_patterns/{place}", "detail": str(fault)})
    if not faults:
        return from_validation_error(error)
    rest = {name: errors for name, errors in by_field.items() if name != "topic_patterns"}
    more = from_validation_error(ValidationError(rest)).members["errors"] if rest else []
    return invalid([*faults, *more])


def _duplicate_name() -> Problem:
    return Problem(
        409,
        "duplicate-name",
        "The name is taken",
        "The tenant has a subscription with this name already; choose another.",
        errors=[{"pointer": "/name", "detail": "This name is taken."}],
    )
