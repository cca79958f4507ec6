"""A trace goes from a publisher through real worker processes to the receiver."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from opentelemetry import context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from deliveries import publish
from deliveries.models import Delivery
from tests.end_to_end.conftest import Workers, eventually
from tests.factories import make_subscription
from webhooks_project.receiver import Answer, Received, Receiver

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{PARENT}-01"


class FailsFirst:
    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, received: Received) -> Answer:
        self._seen[received.id] += 1
        return Answer(503 if self._seen[received.id] == 1 else 200)


def publish_in_a_trace() -> None:
    token = context.attach(TraceContextTextMapPropagator().extract({"traceparent": HEADER}))
    try:
        publish("test.one", {})
    finally:
        context.detach(token)
    publish("test.two", {})


def all_arrived() -> bool:
    return not Delivery.objects.exclude(status="succeeded").exists()


def headers(receiver: Receiver, topic: str) -> list[str]:
    return [one.header("traceparent") for one in receiver.received if one.topic == topic]


def test_a_worker_without_an_sdk_passes_the_header_on(workers: Workers) -> None:
    with Receiver(respond=FailsFirst()) as receiver:
        make_subscription(url=receiver.url)
        workers.worker(send_traceparent="on")
        publish_in_a_trace()
        eventually(all_arrived, "both arriving")
        assert headers(receiver, "test.one") == [HEADER, HEADER]
        assert headers(receiver, "test.two") == ["", ""]
    assert workers.logs().count(f'"trace_id":"{TRACE}"') == 2


def test_a_worker_with_an_sdk_records_each_attempt_and_sends_its_id(
    workers: Workers, environment: dict[str, str], tmp_path: Path
) -> None:
    written = tmp_path / "spans"
    environment["DJANGO_SETTINGS_MODULE"] = "tests.end_to_end.tracing_settings"
    environment["SPANS"] = str(written)
    with Receiver(respond=FailsFirst()) as receiver:
        make_subscription(url=receiver.url)
        worker = workers.worker(send_traceparent="on")
        publish_in_a_trace()
        eventually(all_arrived, "both arriving")
        # A process that ends has exported its spans.
        os.killpg(worker.pid, signal.SIGTERM)
        worker.wait(60)
        arrived = headers(receiver, "test.one")
    spans = [json.loads(line) for line in written.read_text().splitlines()]
    assert [span["name"] for span in spans] == ["deliver", "deliver"]
    assert {span["parent_id"] for span in spans} == {f"0x{PARENT}"}
    assert [span["attributes"]["http.response.status_code"] for span in spans] == [503, 200]
    assert arrived == [f"00-{TRACE}-{span['context']['span_id'][2:]}-01" for span in spans]
