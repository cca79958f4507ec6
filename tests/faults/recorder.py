"""Loaded into the workers with `--include`: writes down each signal of the circuit.

One line each, `tripped` or `reset`, then the subscription's id, to the file that
`FAULTS_SIGNALS` names. A write of less than a page with O_APPEND is never torn or interleaved.
"""

from __future__ import annotations

import os
from typing import Any

from subscriptions.models import Subscription
from subscriptions.signals import circuit_reset, circuit_tripped

FILE_VARIABLE = "FAULTS_SIGNALS"


def write(word: str, subscription: Subscription) -> None:
    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{word} {subscription.pk}\n".encode())
    finally:
        os.close(file)


def _tripped(*, subscription: Subscription, **_: Any) -> None:
    write("tripped", subscription)


def _reset(*, subscription: Subscription, **_: Any) -> None:
    write("reset", subscription)


circuit_tripped.connect(_tripped, dispatch_uid="faults")
circuit_reset.connect(_reset, dispatch_uid="faults")
