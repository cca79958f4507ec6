"""What the routes of subscriptions take and give; the rules are the model's own.

Limits that stand in `json_schema_extra` are for readers of the OpenAPI document: the model holds
them, with a sentence that says more than a validator of types could.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, Strict
from pydantic_core import PydanticCustomError

from api.v1.closed import Closed, limit_keys
from api.v1.moments import Moment
from deliveries.sending.send_test import TEST_TOPIC
from subscriptions.models import Subscription
from subscriptions.tenants import MAX_LENGTH as MAX_TENANT_LENGTH
from subscriptions.topics import rules
from subscriptions.validators import MAX_HEADERS, MAX_PATTERNS

State = Literal["active", "paused", "tripped"]
Recovery = Literal["automatic", "manual"]
# For a key that need not be there and is never null: the default of no type.
LEFT_OUT: Any = None
YEAR = 366 * 86400

WARNINGS = {
    "http": "the URL is not https: what is sent can be read and changed on its way",
    "no-secret": "no signing secret is in force: nothing can be sent; rotate the secret",
    "ignored-headers": "some headers cannot be sent, or are set by the sender; they are left out",
}


class Body(Closed, BaseModel):
    """A body that is taken as it is: `true` is no number, `"1"` is none, and no key is unknown."""

    model_config = ConfigDict(strict=True)


_EXAMPLE: dict[str, Any] = {
    "name": "billing",
    "url": "https://billing.example.com/webhooks",
    "topic_patterns": ["order.*", "invoice.>"],
    "max_in_flight": 10,
}


def _of_model(name: str) -> str:
    field: Any = Subscription._meta.get_field(name)
    return str(field.help_text)


Name = Annotated[
    str,
    Field(
        description=_of_model("name"),
        examples=["billing"],
        json_schema_extra={"minLength": 1, "maxLength": 200},
    ),
]
Url = Annotated[
    str,
    Field(
        description="Where events are sent, by POST: an http or https address, without user name "
        "and fragment. Addresses of private networks are refused, unless the setting "
        "WEBHOOKS_ALLOWED_NETWORKS lists them.",
        examples=["https://billing.example.com/webhooks"],
        json_schema_extra={
            "minLength": 1,
            "maxLength": 2000,
            "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://",
        },
    ),
]
Pattern = Annotated[str, Field(json_schema_extra={"minLength": 1, "maxLength": rules.MAX_LENGTH})]
Patterns = Annotated[
    list[Pattern],
    Field(
        description="Topic patterns: `*` is exactly one token, `>` at the end is one or more. A "
        "subscription gets an event whose topic one of them matches.",
        examples=[["order.*", "invoice.>"]],
        max_length=MAX_PATTERNS,
    ),
]
Groups = Annotated[
    list[str],
    Field(
        description="Names of groups of topic patterns (the setting WEBHOOKS_TOPIC_GROUPS), whose "
        "patterns are added to `topic_patterns`.",
        examples=[["all attacks"]],
        max_length=MAX_PATTERNS,
    ),
]
Headers = Annotated[
    dict[str, str],
    BeforeValidator(lambda value: limit_keys(value, MAX_HEADERS)),
    Field(
        description="Headers to add to each request, such as a token that the receiver asks for. "
        "Every key that may read the subscription reads them.",
        examples=[{"X-Team": "blue"}],
        json_schema_extra={"maxProperties": MAX_HEADERS},
    ),
]
MaxInFlight = Annotated[
    int,
    Field(
        description=_of_model("max_in_flight"),
        examples=[10],
        json_schema_extra={"minimum": 1, "maximum": 1000},
    ),
]
Recover = Annotated[
    Recovery,
    Field(
        description="Once tripped: `automatic` probes the receiver and enables the subscription "
        "when it answers, `manual` waits for an operator. Default: WEBHOOKS_CIRCUIT_RECOVERY."
    ),
]
Tenant = Annotated[
    str,
    Field(
        description=_of_model("tenant") + " A key that is bound to a tenant makes its own.",
        examples=["acme"],
        json_schema_extra={"maxLength": MAX_TENANT_LENGTH},
    ),
]
AllTenants = Annotated[
    bool,
    Field(description=_of_model("all_tenants") + " Needs a key of all tenants, and never changes."),
]
GivenSecret = Annotated[
    SecretStr,
    # What is strict is the text below it.
    Strict(False),
    BeforeValidator(lambda value: value if isinstance(value, str) else _no_secret()),
    Field(
        description="A signing secret to use instead of a new one: `whsec_` and the base64 of 24 "
        "to 64 random bytes. It is not in the answer.",
        json_schema_extra={"format": "password", "writeOnly": True},
    ),
]


def _no_secret() -> str:
    raise PydanticCustomError("secret", "Give the secret as a text that begins with whsec_.")


class NewSubscription(Body):
    """A subscription to make."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    name: Name
    url: Url
    topic_patterns: Patterns = []
    groups: Groups = []
    tenant: Tenant = LEFT_OUT
    all_tenants: AllTenants = False
    headers: Headers = {}
    max_in_flight: MaxInFlight = LEFT_OUT
    recovery: Recover = LEFT_OUT
    enabled: bool = Field(default=True, description="False: it is made paused.")
    secret: GivenSecret = LEFT_OUT


class SubscriptionChange(Body):
    """What to change of a subscription; what is left out stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": True}]})

    name: Name = LEFT_OUT
    url: Url = LEFT_OUT
    topic_patterns: Patterns = LEFT_OUT
    groups: Groups = LEFT_OUT
    headers: Headers = LEFT_OUT
    max_in_flight: MaxInFlight = LEFT_OUT
    recovery: Recover = LEFT_OUT
    enabled: bool = Field(
        default=LEFT_OUT,
        description="True enables a paused or tripped subscription: its circuit is reset "
        "(`auto_disabled_at`, `consecutive_failures` and `last_error` are cleared) and what was "
        "held is sent, gently at first. False pauses it, also a tripped one: what is pending is "
        "held, and events that are published meanwhile are not kept for it.",
    )


class ShownSubscription(BaseModel):
    """A subscription. Its secrets are in no answer but that of the request which made them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                _EXAMPLE
                | {
                    "id": "0199f3a2-7c1e-7b44-9d0f-3c5a2b1e8f60",
                    "tenant": "",
                    "all_tenants": False,
                    "headers": {},
                    "recovery": "automatic",
                    "enabled": True,
                    "state": "active",
                    "warnings": [],
                    "consecutive_failures": 0,
                    "auto_disabled_at": None,
                    "last_success_at": "2026-01-31T12:00:00Z",
                    "last_failure_at": None,
                    "last_error": "",
                    "next_probe_at": None,
                    "created_at": "2026-01-01T00:00:00Z",
                    "updated_at": "2026-01-31T12:00:00Z",
                }
            ]
        }
    )

    id: str = Field(json_schema_extra={"format": "uuid"})
    tenant: str
    all_tenants: bool
    name: str
    url: str
    topic_patterns: list[str]
    headers: dict[str, str]
    max_in_flight: int
    recovery: Recovery
    enabled: bool
    state: State = Field(
        description="`active`; `paused`: disabled by an operator; `tripped`: disabled by its "
        "circuit, at `auto_disabled_at`, because of `last_error`."
    )
    warnings: list[Literal["http", "no-secret", "ignored-headers"]] = Field(
        description="; ".join(f"`{code}`: {text}" for code, text in WARNINGS.items()) + "."
    )
    consecutive_failures: int = Field(description="Failures in a row, as the circuit counts them.")
    auto_disabled_at: AwareDatetime | None = Field(description="When the circuit tripped.")
    last_success_at: AwareDatetime | None
    last_failure_at: AwareDatetime | None
    last_error: str
    next_probe_at: AwareDatetime | None = Field(
        description="When a tripped subscription is tried again; null: it waits for an operator."
    )
    created_at: AwareDatetime
    updated_at: AwareDatetime


class MadeSubscription(ShownSubscription):
    """A subscription that was made, with its secret."""

    secret: str | None = Field(
        description="The signing secret, this once: hand it to the receiver. Null if the request "
        "gave one.",
        examples=["whsec_2Kd0dHl9vJ1rJ8hFz0a9aVb5mX3m2k7Qd1nQm0u8S0w="],
    )


class TestRequest(Body):
    """The test event."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"topic": TEST_TOPIC}]})
    __test__: ClassVar = False

    topic: str = Field(
        default=TEST_TOPIC,
        description="The topic of the test event; it need match no pattern.",
        json_schema_extra={"minLength": 1, "maxLength": rules.MAX_LENGTH},
    )


class TestAnswer(BaseModel):
    """What the receiver said to a test event."""

    model_config = ConfigDict(from_attributes=True)
    __test__: ClassVar = False

    succeeded: bool = Field(description="Whether it answered with a status of 2xx.")
    event_id: str = Field(description="The `webhook-id` that was sent; there is no such event.")
    status_code: int | None = Field(description="Null: there was no answer; `error` says why.")
    error: str
    response_body: str = Field(description="The beginning of the answer.")
    duration_ms: int
    remote_address: str = Field(description="The address that was dialled.")


class Rotation(Body):
    """How to rotate the signing secret."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap": 3600}]})

    overlap: float = Field(
        default=LEFT_OUT,
        ge=0,
        le=YEAR,
        description="Seconds that the old secrets stay in force, so that the receiver can change "
        "over: every request is signed with each. 0: the old one has leaked. Default: "
        "WEBHOOKS_SECRET_OVERLAP.",
    )
    secret: GivenSecret = LEFT_OUT


class RotatedSecret(BaseModel):
    """The new signing secret."""

    secret: str | None = Field(
        description="The new secret, this once: hand it to the receiver. Null if the request gave "
        "one.",
        examples=["whsec_2Kd0dHl9vJ1rJ8hFz0a9aVb5mX3m2k7Qd1nQm0u8S0w="],
    )
    old_secrets_end_at: AwareDatetime | None = Field(
        description="Until when requests are signed with the old secrets too; null: there was none."
    )


class Reset(Body):
    """What becomes of the deliveries that were held."""

    held: Literal["send", "discard"] = Field(
        default="send",
        description="`send`: they are due now, gently at first. `discard`: they are ended for good "
        "(and stay listed, as `discarded`).",
        examples=["send"],
    )


class Replay(Body):
    """Which finished deliveries to send again. What is left out does not narrow the choice."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"status": ["failed"], "since": "2026-01-31T00:00:00Z"}]}
    )

    status: list[Literal["succeeded", "failed", "discarded"]] = Field(
        default=["failed", "discarded"],
        description="Deliveries in one of these statuses.",
        min_length=1,
        max_length=3,
    )
    topic: str = Field(
        default=LEFT_OUT,
        description="Of events with this very topic.",
        json_schema_extra={"minLength": 1, "maxLength": rules.MAX_LENGTH},
    )
    since: Moment = Field(
        default=LEFT_OUT, description="Of events published at this time or later."
    )
    until: Moment = Field(default=LEFT_OUT, description="Of events published before this time.")
    cursor: str = Field(
        default=LEFT_OUT,
        max_length=500,
        description="`next_cursor` of the answer before, with the same choice: go on there.",
    )


class Replayed(BaseModel):
    """How many deliveries this request has made open again."""

    pending: int = Field(description="Due now.")
    held: int = Field(description="Held until the subscription is active again.")
    next_cursor: str | None = Field(
        description="Not null: there may be more. Send the same again with this as `cursor`."
    )


class RecentDeliveries(BaseModel):
    """The newest deliveries, at most 1,000, by status."""

    since: AwareDatetime | None = Field(description="When the oldest of them was published.")
    pending: int
    held: int
    succeeded: int
    failed: int
    discarded: int
    attempts: int = Field(description="Requests that were made for them.")
    duration_ms_p50: int | None = Field(description="Of the answered requests among these.")
    duration_ms_p99: int | None


class Stats(BaseModel):
    """How it goes with a subscription."""

    pending: int = Field(description="Deliveries that are due, or will be.")
    held: int = Field(description="Deliveries that wait until the subscription is active.")
    discarding: int = Field(description="Of the held ones, those that are about to be discarded.")
    backing_off_until: AwareDatetime | None = Field(description="Nothing is sent before then.")
    backing_off_because: str | None
    failed_attempts: int = Field(description="Failed requests in a row.")
    sending_until: AwareDatetime | None = Field(
        description="A worker is sending, and has the right to until then."
    )
    recent: RecentDeliveries
