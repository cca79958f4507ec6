"""Traces (OpenTelemetry): that of the publisher goes on in the attempts of each delivery.

An event keeps the `traceparent` (W3C Trace Context) of the span that published it; `publish` makes
that span if the caller is being traced. Each attempt is a span whose parent it is, and not a span
of a trace of its own with a link to it: a message that is handled alone may take its producer's
context as its parent (semantic conventions for messaging spans), and so one trace shows where the
event went, hours later too.

Only the API of OpenTelemetry is needed. Without an SDK there are no spans, and the `traceparent` is
passed on as it came. Names and attributes are those of the semantic conventions, where these have
one. No span holds a body, a header, or anything of the URL but scheme, host and port.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from urllib.parse import urlsplit

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deliveries.values import ClaimedDelivery, ClaimedLane, Result
from subscriptions.conf import conf

logger = logging.getLogger(__name__)

# So much of an error is shown.
MAX_ERROR = 200

_tracer = trace.get_tracer("deliveries")
_propagator = TraceContextTextMapPropagator()


def is_traced() -> bool:
    """Whether there is a current span, be it recorded or not."""
    return trace.get_current_span().get_span_context().is_valid


@contextmanager
def publish_span(events: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """The span of publishing these events (id, topic, tenant); gives their `traceparent`."""
    attributes: dict[str, str | int] = {
        "messaging.system": "webhooks",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
    }
    if len(events) == 1:
        attributes["messaging.message.id"] = events[0][0]
    else:
        attributes["messaging.batch.message_count"] = len(events)
    # Never in the span's name: there may be any number of topics.
    for name, values in (
        ("messaging.destination.name", {topic for _, topic, _ in events}),
        ("webhooks.tenant", {tenant for _, _, tenant in events}),
    ):
        if len(values) == 1 and (value := values.pop()):
            attributes[name] = value
    caller = trace.get_current_span()
    with _tracer.start_as_current_span(
        "publish", kind=trace.SpanKind.PRODUCER, attributes=attributes
    ) as span:
        yield _traceparent(span) or _traceparent(caller)


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """Within this the trace of a request goes on, unless the process has a current span.

    `traceparent` is the request's header; one that is malformed is ignored.
    """
    if not traceparent or is_traced():
        yield
        return
    token = context.attach(_propagator.extract({"traceparent": traceparent}, context.get_current()))
    try:
        yield
    finally:
        context.detach(token)


def begin_attempt(lane: ClaimedLane, delivery: ClaimedDelivery) -> str:
    """The `traceparent` that the receiver gets: of the attempt's span, which begins with this, or
    without an SDK the event's; empty unless the settings say that receivers get one."""
    if not conf().send_traceparent:
        return ""
    if not _are_recorded():
        return delivery.traceparent
    try:
        delivery.span = _begin(lane, delivery, time.time())
    except Exception:
        # The application's sampler or processor: deliveries go on, whatever becomes of their spans.
        logger.exception("The span of delivery %d could not begin.", delivery.id)
        return delivery.traceparent
    return _traceparent(delivery.span) or delivery.traceparent


def record_attempts(written: Iterable[tuple[Result, str]]) -> None:
    """The spans of results that were written down, each with its delivery's new status."""
    traced = [one for one in written if one[0].delivery.traceparent]
    if not traced or not _are_recorded():
        return
    try:
        for result, status in traced:
            _record(result, status)
    except Exception:
        # Deliveries go on, whatever becomes of their spans.
        logger.exception("The spans of %d attempts could not be recorded.", len(traced))


def _are_recorded() -> bool:
    """Whether there is an SDK."""
    return not isinstance(
        trace.get_tracer_provider(), (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
    )


def _begin(lane: ClaimedLane, delivery: ClaimedDelivery, started_at: float) -> trace.Span:
    number = delivery.attempt_count + 1
    attributes: dict[str, str | int] = {
        "http.request.method": "POST",
        **_target(lane.url),
        "webhooks.delivery.id": delivery.id,
        "webhooks.event.id": delivery.event_id,
        "webhooks.topic": delivery.topic,
        "webhooks.subscription": str(lane.subscription_id),
        "webhooks.attempt": number,
    }
    if number > 1:
        attributes["http.request.resend_count"] = number - 1
    if lane.tenant:
        attributes["webhooks.tenant"] = lane.tenant
    return _tracer.start_span(
        "deliver",
        _context(delivery.traceparent),
        trace.SpanKind.CLIENT,
        attributes,
        start_time=_nanoseconds(started_at),
    )


def _record(result: Result, status: str) -> None:
    delivery, judged = result.delivery, result.judged
    span = delivery.span or _begin(result.lane, delivery, result.started_at)
    if span.is_recording():
        span.set_attributes(
            {
                "webhooks.verdict": judged.outcome.verdict.value,
                "webhooks.outcome": judged.code,
                "webhooks.delivery.status": status,
            }
        )
        if judged.remote_address:
            span.set_attribute("network.peer.address", judged.remote_address)
        if judged.status_code is not None:
            span.set_attribute("http.response.status_code", judged.status_code)
        if judged.code != "success":
            answered = judged.status_code is not None
            span.set_attribute("error.type", str(judged.status_code) if answered else judged.code)
            # What a receiver answered may hold what it was sent.
            text = None if answered else " ".join(judged.error.split())[:MAX_ERROR]
            span.set_status(trace.StatusCode.ERROR, text)
    span.end(_nanoseconds(result.started_at + judged.duration_ms / 1000))


def _traceparent(span: trace.Span) -> str:
    """Version 00: 55 characters; empty for a span without ids, as a tracer that does nothing makes
    them in some versions."""
    its = span.get_span_context()
    if not its.is_valid:
        return ""
    return (
        f"00-{trace.format_trace_id(its.trace_id)}-{trace.format_span_id(its.span_id)}"
        f"-{its.trace_flags:02x}"
    )


@lru_cache(maxsize=1000)
def _context(traceparent: str) -> context.Context:
    return _propagator.extract({"traceparent": traceparent})


@lru_cache(maxsize=1000)
def _target(url: str) -> dict[str, str | int]:
    parts = urlsplit(url)
    return {
        "url.scheme": parts.scheme,
        "server.address": parts.hostname or "",
        "server.port": parts.port or (443 if parts.scheme == "https" else 80),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
