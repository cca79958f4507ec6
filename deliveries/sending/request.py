"""From a claimed delivery to a signed request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import requests

from deliveries import tracing
from deliveries.sending import signing
from deliveries.values import ClaimedDelivery, ClaimedLane
from subscriptions.conf import conf

USER_AGENT = "webhooks/1 (+standard-webhooks)"


def request_of(lane: ClaimedLane, delivery: ClaimedDelivery) -> requests.PreparedRequest:
    """The next attempt of a delivery whose payload was claimed with it."""
    payload = delivery.payload
    assert payload is not None
    return signed_post(
        lane.url,
        lane.headers,
        lane.secrets,
        event_id=delivery.event_id,
        topic=payload.topic,
        body=payload.body,
        timestamp=int(time.time()),
        tenant=payload.tenant if payload.tenant != lane.tenant else "",
        traceparent=delivery.traceparent and tracing.begin_attempt(lane, delivery),
    )


def signed_post(
    url: str,
    headers: Mapping[str, str],
    secrets: Sequence[str],
    *,
    event_id: str,
    topic: str,
    body: bytes,
    timestamp: int,
    tenant: str = "",
    traceparent: str = "",
) -> requests.PreparedRequest:
    """The signed POST of an event to a receiver; `timestamp` in Unix seconds.

    `tenant` is shown to a receiver that gets the events of all tenants, and to no other.
    `headers` are the subscription's own; the sender's win, but for `traceparent`, which is sent if
    it is not empty and the subscription has none of its own. Not by `Request.prepare()`: URL and
    headers were checked when they were saved, and preparing them again costs more than signing.
    """
    request = requests.PreparedRequest()
    request.method = "POST"
    request.url = url
    own = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        **signing.headers(
            body,
            event_id=event_id,
            topic=topic,
            timestamp=timestamp,
            secrets=secrets,
            prefix=conf().header_prefix,
            tenant=tenant,
        ),
    }
    if headers:
        # `validate_headers` refused these names, but under the prefix of its time.
        taken = {name.lower() for name in own}
        own |= {name: text for name, text in headers.items() if name.lower() not in taken}
    if traceparent and not any(name.lower() == "traceparent" for name in headers):
        own["traceparent"] = traceparent
    # A plain dict: making one that ignores case costs as much as signing.
    request.headers = own  # type: ignore[assignment]
    request.body = body
    return request
