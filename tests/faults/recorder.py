"""Loaded into the workers with `--include`: writes down each signal of the circuit.

One line each, `tripped` or `reset`, then the subscription's id, or `blown` or `reset` for the
fuse, to the file that `FAULTS_SIGNALS` names. A write of less than a page with O_APPEND is never
torn or interleaved.
"""

from __future__ import annotations

import os
from typing import Any

from subscriptions.models import Subscription
from subscriptions.signals import circuit_reset, circuit_tripped, fuse_blown, fuse_reset

FILE_VARIABLE = "FAULTS_SIGNALS"


def write(*words: object) -> None:
    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, " ".join(map(str, words)).encode() + b"\n")
    finally:
        os.close(file)


def _tripped(*, subscription: Subscription, **_: Any) -> None:
    write("tripped", subscription.pk)


def _reset(*, subscription: Subscription, **_: Any) -> None:
    write("reset", subscription.pk)


def _blown(**_: Any) -> None:
    write("blown")


def _reset_fuse(**_: Any) -> None:
    write("reset")


circuit_tripped.connect(_tripped, dispatch_uid="faults")
circuit_reset.connect(_reset, dispatch_uid="faults")
fuse_blown.connect(_blown, dispatch_uid="faults")
fuse_reset.connect(_reset_fuse, dispatch_uid="faults")
