"""The settings of a worker that records spans, set up as `docs/tracing.md` says."""

import os

from celery.signals import worker_init
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from webhooks_project.settings import *  # noqa: F403


@worker_init.connect
def start_tracing(**_: object) -> None:
    provider = TracerProvider()
    out = open(os.environ["SPANS"], "w")  # noqa: SIM115 - written until the process ends
    exporter = ConsoleSpanExporter(out=out, formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
