"""Traces: that of a publisher goes on in the attempts, and on to the receiver if that is wanted."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from django.test import Client
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from deliveries import EventConflict, NewEvent, publish, publish_many, tracing
from deliveries.keeping.replay import replay
from deliveries.models import Attempt, Delivery, Event
from deliveries.monitoring.lines import logger
from tests.api.calls import Caller
from tests.deliveries.conftest import Script
from tests.deliveries.sending import make_due
from tests.factories import make_subscription
from webhooks_project.logs import JsonLines
from webhooks_project.receiver import Answer, Receiver

pytestmark = pytest.mark.django_db(transaction=True)

Send = Callable[..., None]
Configure = Callable[..., None]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"
EVENTS = "/api/v1/events"


class Traces(InMemorySpanExporter):
    """The spans that have ended, of an SDK that the test alone has."""

    def __init__(self) -> None:
        super().__init__()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.get_finished_spans() if span.name == name]


def use(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    # OpenTelemetry lets a process choose once.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("deliveries"))


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    made = Traces()
    use(made.provider, monkeypatch)
    yield made
    made.provider.shutdown()


def of(span: ReadableSpan) -> str:
    """The `traceparent` of a span."""
    its = span.get_span_context()
    assert its is not None
    return f"00-{its.trace_id:032x}-{its.span_id:016x}-{int(its.trace_flags):02x}"


def parent_of(span: ReadableSpan) -> str:
    assert span.parent is not None
    return f"{span.parent.span_id:016x}"


def span_id(traceparent: str) -> str:
    return traceparent.split("-")[2]


def test_the_attempts_of_what_is_published_in_a_span_are_in_its_trace(
    traces: Traces, send: Send, receiver: Receiver, script: Script
) -> None:
    subscription = make_subscription(url=receiver.url + "secret?token=canary")
    script.answers = [Answer(503, b"canary"), Answer(429)]
    with traces.tracer.start_as_current_span("order") as order:
        event = publish("test.one", {"n": "canary"})
    for _ in range(3):
        send(subscription)
        make_due()
    (published,) = traces.named("publish")
    attempts = traces.named("deliver")
    assert published.kind is trace.SpanKind.PRODUCER
    assert parent_of(published) == f"{order.get_span_context().span_id:016x}"
    assert dict(published.attributes or {}) == {
        "messaging.system": "webhooks",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "test.one",
        "messaging.message.id": event.id,
    }
    assert event.traceparent == Event.objects.get().traceparent == of(published)

    assert {span.kind for span in attempts} == {trace.SpanKind.CLIENT}
    assert {parent_of(span) for span in attempts} == {span_id(of(published))}
    assert {of(span)[:36] for span in attempts} == {of(order)[:36]}  # type: ignore[arg-type]
    assert [span.status.status_code.name for span in attempts] == ["ERROR", "ERROR", "UNSET"]
    delivery = Delivery.objects.get()
    told = [dict(span.attributes or {}) for span in attempts]
    assert told[0].pop("network.peer.address").startswith("127.0.0.1")  # type: ignore[union-attr]
    assert told[0] == {
        "http.request.method": "POST",
        "url.scheme": "http",
        "server.address": "127.0.0.1",
        "server.port": receiver.port,
        "http.response.status_code": 503,
        "error.type": "503",
        "webhooks.delivery.id": delivery.pk,
        "webhooks.event.id": event.id,
        "webhooks.topic": "test.one",
        "webhooks.subscription": str(subscription.pk),
        "webhooks.attempt": 1,
        "webhooks.verdict": "retry",
        "webhooks.outcome": "http",
        "webhooks.delivery.status": "pending",
    }
    shown = ("webhooks.attempt", "http.request.resend_count", "webhooks.verdict", "error.type")
    assert [[one.get(name) for name in shown] for one in told] == [
        [1, None, "retry", "503"],
        [2, 1, "retry", "429"],
        [3, 2, "success", None],
    ]
    for span, attempt in zip(attempts, Attempt.objects.order_by("number"), strict=True):
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time / 1e9 == pytest.approx(attempt.started_at.timestamp(), abs=1e-4)
        taken = span.end_time - span.start_time
        assert taken / 1e6 == pytest.approx(attempt.duration_ms, abs=0.01)
    assert "canary" not in "".join(span.to_json() for span in traces.get_finished_spans())


def test_an_attempt_without_an_answer_says_why(traces: Traces, send: Send) -> None:
    subscription = make_subscription(url="http://127.0.0.1:9/?token=canary")
    with traces.tracer.start_as_current_span("order"):
        publish("test.one", {})
    send(subscription)
    (attempt,) = traces.named("deliver")
    assert attempt.attributes is not None
    assert attempt.attributes["error.type"] == "refused"
    assert "http.response.status_code" not in attempt.attributes
    assert attempt.status.status_code is trace.StatusCode.ERROR
    assert attempt.status.description
    assert "canary" not in attempt.to_json()


def test_what_is_published_outside_of_a_trace_has_none(
    traces: Traces, send: Send, receiver: Receiver, configure: Configure
) -> None:
    configure(send_traceparent=True)
    subscription = make_subscription(url=receiver.url)
    event = publish("test.one", {})
    send(subscription)
    assert event.traceparent == Event.objects.get().traceparent == ""
    assert traces.get_finished_spans() == ()
    assert receiver.received[0].header("traceparent") == ""


def test_many_events_of_one_call_are_published_in_one_span(traces: Traces) -> None:
    with traces.tracer.start_as_current_span("import"):
        events = publish_many(
            [NewEvent(topic=f"test.{n}", payload={}, tenant="acme") for n in range(3)]
        )
    (published,) = traces.named("publish")
    assert {event.traceparent for event in events} == {of(published)}
    assert {one.traceparent for one in Event.objects.all()} == {of(published)}
    assert published.attributes is not None
    assert published.attributes["messaging.batch.message_count"] == 3
    assert published.attributes["webhooks.tenant"] == "acme"
    assert "messaging.destination.name" not in published.attributes


def test_a_known_event_keeps_the_trace_that_it_was_first_published_in(traces: Traces) -> None:
    with traces.tracer.start_as_current_span("first"):
        first = publish("test.one", {}, event_id="same")
    with traces.tracer.start_as_current_span("second"):
        assert publish("test.one", {}, event_id="same").traceparent == first.traceparent
        with pytest.raises(EventConflict):
            publish("test.one", {"other": 1}, event_id="same")
    *_, refused = traces.named("publish")
    assert refused.status.status_code is trace.StatusCode.ERROR


def test_a_replay_is_in_the_trace_of_its_event(
    traces: Traces, send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    with traces.tracer.start_as_current_span("order"):
        event = publish("test.one", {})
    send(subscription)
    with traces.tracer.start_as_current_span("operator"):
        replay([Delivery.objects.get().pk])
    send(subscription)
    attempts = traces.named("deliver")
    assert [parent_of(span) for span in attempts] == [span_id(event.traceparent)] * 2
    assert [(span.attributes or {})["webhooks.attempt"] for span in attempts] == [1, 2]


def test_receivers_get_the_attempts_span_if_that_is_switched_on(
    traces: Traces, send: Send, receiver: Receiver, script: Script, configure: Configure
) -> None:
    configure(send_traceparent=True)
    script.answers = [Answer(503)]
    subscription = make_subscription(url=receiver.url)
    with traces.tracer.start_as_current_span("order"):
        publish("test.one", {})
    for _ in range(2):
        send(subscription)
        make_due()
    headers = [one.header("traceparent") for one in receiver.received]
    attempts = traces.named("deliver")
    assert headers == [of(span) for span in attempts]
    assert len(set(headers)) == 2
    assert len({header[:36] for header in headers}) == 1
    for span in attempts:
        assert 0 < span.start_time < span.end_time  # type: ignore[operator]


def test_receivers_get_no_header_unless_it_is_switched_on(
    traces: Traces, send: Send, receiver: Receiver
) -> None:
    subscription = make_subscription(url=receiver.url)
    with traces.tracer.start_as_current_span("order"):
        publish("test.one", {})
    send(subscription)
    assert receiver.received[0].header("traceparent") == ""


def test_a_subscriptions_own_traceparent_is_what_its_receiver_gets(
    traces: Traces, send: Send, receiver: Receiver, configure: Configure
) -> None:
    configure(send_traceparent=True)
    subscription = make_subscription(url=receiver.url, headers={"TraceParent": HEADER})
    with traces.tracer.start_as_current_span("order"):
        publish("test.one", {})
    send(subscription)
    (received,) = receiver.received
    found = [text for name, text in received.headers.items() if name.lower() == "traceparent"]
    assert found == [HEADER]


def test_a_trace_that_is_not_sampled_is_passed_on_and_not_recorded(
    traces: Traces,
    send: Send,
    receiver: Receiver,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(send_traceparent=True)
    unsampled = TracerProvider(sampler=ALWAYS_OFF)
    use(unsampled, monkeypatch)
    subscription = make_subscription(url=receiver.url)
    with unsampled.get_tracer("test").start_as_current_span("order") as order:
        event = publish("test.one", {})
    send(subscription)
    trace_id = f"{order.get_span_context().trace_id:032x}"
    for text in (event.traceparent, receiver.received[0].header("traceparent")):
        assert text.split("-")[1] == trace_id
        assert not int(text.split("-")[3], 16) & trace.TraceFlags.SAMPLED


def test_an_sdk_that_is_switched_off_passes_the_trace_on(
    send: Send, receiver: Receiver, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    configure(send_traceparent=True)
    use(TracerProvider(), monkeypatch)
    subscription = make_subscription(url=receiver.url)
    with tracing.continued(HEADER):
        event = publish("test.one", {})
    send(subscription)
    assert event.traceparent == receiver.received[0].header("traceparent") == HEADER
    assert Delivery.objects.get().status == "succeeded"


# Without an SDK.


def test_without_an_sdk_the_callers_trace_goes_through_to_the_receiver(
    send: Send, receiver: Receiver, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger.name)
    configure(send_traceparent=True)
    subscription = make_subscription(url=receiver.url)
    response = Caller("events:write").call(
        "POST", EVENTS, {"topic": "test.one", "payload": {}}, traceparent=HEADER
    )
    assert response.status_code == 202
    assert Event.objects.get().traceparent == HEADER
    send(subscription)
    assert receiver.received[0].header("traceparent") == HEADER
    (record,) = [one for one in caplog.records if one.name == logger.name]
    assert json.loads(JsonLines().format(record))["trace_id"] == TRACE
    assert f"trace_id={TRACE}" in record.getMessage()


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        HEADER.upper(),
        HEADER[:-1],
        HEADER + "-more",
        "ff" + HEADER[2:],
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        HEADER + "," + HEADER,
        "0" * 600,
    ],
)
def test_a_malformed_header_is_ignored(
    header: str, ordered: object, caplog: pytest.LogCaptureFixture
) -> None:
    response = Caller("events:write").call(
        "POST", EVENTS, {"topic": "test.one", "payload": {}}, traceparent=header
    )
    assert response.status_code == 202
    assert Event.objects.get().traceparent == ""


def test_a_header_of_a_later_version_is_read_as_far_as_it_is_known(ordered: object) -> None:
    Caller("events:write").call(
        "POST",
        EVENTS + "/batch",
        {"events": [{"topic": "test.one", "payload": {}}] * 2},
        traceparent="cc" + HEADER[2:] + "-new",
    )
    assert {one.traceparent for one in Event.objects.all()} == {HEADER}
    assert Event.objects.count() == 2


# With one.


def test_the_api_goes_on_with_its_callers_trace(traces: Traces, ordered: object) -> None:
    Caller("events:write").call(
        "POST", EVENTS, {"topic": "test.one", "payload": {}}, traceparent=HEADER
    )
    (published,) = traces.named("publish")
    assert of(published)[:36] == HEADER[:36]
    assert parent_of(published) == PARENT
    assert Event.objects.get().traceparent == of(published)
    assert not tracing.is_traced()


def test_a_span_of_the_application_itself_counts_for_more_than_the_header(
    traces: Traces, ordered: object
) -> None:
    with traces.tracer.start_as_current_span("POST /events") as request:
        Caller("events:write").call(
            "POST", EVENTS, {"topic": "test.one", "payload": {}}, traceparent=HEADER
        )
    (published,) = traces.named("publish")
    assert parent_of(published) == f"{request.get_span_context().span_id:016x}"


def test_deliveries_go_on_if_their_spans_cannot_be_recorded(
    traces: Traces,
    send: Send,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of order")

    subscription = make_subscription(url=receiver.url)
    with traces.tracer.start_as_current_span("order"):
        publish_many([NewEvent(topic="test.one", payload={}) for _ in range(3)])
    monkeypatch.setattr(tracing, "_record", fail)
    send(subscription)
    assert {one.status for one in Delivery.objects.all()} == {"succeeded"}
    assert "out of order" in caplog.text


def test_an_attempt_is_made_if_its_span_cannot_begin(
    send: Send,
    receiver: Receiver,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(SpanProcessor):
        def on_start(self, *_: object, **__: object) -> None:
            raise RuntimeError("out of order")

    configure(send_traceparent=True)
    provider = TracerProvider()
    provider.add_span_processor(Broken())
    subscription = make_subscription(url=receiver.url)
    with tracing.continued(HEADER):
        event = publish("test.one", {})
    use(provider, monkeypatch)
    send(subscription)
    assert Delivery.objects.get().status == "succeeded"
    assert receiver.received[0].header("traceparent") == event.traceparent
    assert "out of order" in caplog.text


def test_an_events_page_shows_the_id_of_its_trace(admin_client: Client, ordered: object) -> None:
    with tracing.continued(HEADER):
        traced = publish("test.one", {})
    untraced = publish("test.one", {})
    for event, found in ((traced, [("Trace", TRACE)]), (untraced, [])):
        page = admin_client.get(f"/admin/deliveries/event/{event.pk}/change/")
        assert [fact for fact in page.context["facts"] if fact[0] == "Trace"] == found
