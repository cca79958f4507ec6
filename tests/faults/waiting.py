"""Waiting for what another process does."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

# Everything a test may wait for has happened long before; only a failure waits this long.
PATIENCE = 60.0
PACE = 0.02


def holds_within(condition: Callable[[], object], timeout: float) -> bool:
    """Whether `condition` held within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(PACE)  # the pace of looking, not a wait for something to be over
    return True


def eventually(condition: Callable[[], object], what: str, timeout: float = PATIENCE) -> float:
    """Wait until `condition` holds; returns the seconds. Fails with `what` was waited for."""
    began = time.monotonic()
    if not holds_within(condition, timeout):
        pytest.fail(f"not within {timeout:g} s: {what}")
    return time.monotonic() - began
