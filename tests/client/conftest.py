"""Both clients; and a sender in the test's own process, for tests of those outside of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.both import Clients
from tests.deliveries.conftest import ordered, receiver, script, send, sender

__all__ = ["ordered", "receiver", "script", "send", "sender"]


@pytest.fixture(params=["sync", "async"])
def clients(request: Any) -> Iterator[Clients]:
    made = Clients(request.param)
    yield made
    made.close()
