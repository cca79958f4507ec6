"""Attackers' tools, and a sender in the test's own process to try them on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.deliveries.conftest import ordered, receiver, script, send, sender
from tests.deliveries.transport.conftest import make_transport, transport
from tests.security.wire import Sockets

__all__ = ["make_transport", "ordered", "receiver", "script", "send", "sender", "transport"]


@pytest.fixture
def sockets() -> Sockets:
    """An `open_socket` hook that opens nothing and remembers that it was asked to."""
    return Sockets()


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set variables of the environment for one test, without those that steer other clients."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def set_variables(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_variables
