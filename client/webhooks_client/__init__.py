"""A client of the webhook sender's HTTP API.

    from webhooks_client import Client

    with Client("https://webhooks.example.com", "whk_…") as client:
        client.publish("order.created", {"id": 7, "total": "19.90"})

Modules: `client` (the two clients), `operations` (what is asked), `calls` and `reading` (how it is
written and read), `retrying` (when it is asked again), `answers`, `errors`. It needs httpx alone.
"""

from webhooks_client.answers import (
    Attempt,
    Delivery,
    DeliveryDetails,
    Event,
    EventDelivery,
    EventDetails,
    NewSubscription,
    Page,
    Published,
    RecentDeliveries,
    Replayed,
    RotatedSecret,
    Stats,
    Subscription,
    TestResult,
)
from webhooks_client.client import AsyncClient, AsyncListing, Client, Listing
from webhooks_client.errors import (
    ApiError,
    BadAnswer,
    BadRequest,
    Conflict,
    Fault,
    Forbidden,
    Invalid,
    NoAnswer,
    NotFound,
    PreconditionFailed,
    ServerError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    WebhooksError,
)
from webhooks_client.operations import NewEvent, new_id
from webhooks_client.retrying import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "AsyncListing",
    "Attempt",
    "BadAnswer",
    "BadRequest",
    "Client",
    "Conflict",
    "Delivery",
    "DeliveryDetails",
    "Event",
    "EventDelivery",
    "EventDetails",
    "Fault",
    "Forbidden",
    "Invalid",
    "Listing",
    "NewEvent",
    "NewSubscription",
    "NoAnswer",
    "NotFound",
    "Page",
    "PreconditionFailed",
    "Published",
    "RecentDeliveries",
    "Replayed",
    "Retries",
    "RotatedSecret",
    "ServerError",
    "Stats",
    "Subscription",
    "TestResult",
    "TooLarge",
    "TooManyRequests",
    "Unauthorized",
    "Unavailable",
    "WebhooksError",
    "new_id",
]
