from __future__ import annotations

import ipaddress
import queue
from collections.abc import Callable, Iterator

import pytest
import requests

from deliveries.transport import Exchange, Transport

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def post(url: str, body: bytes = b"{}", **headers: str) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    request.prepare(
        method="POST", url=url, data=body, headers={"Content-Type": "application/json", **headers}
    )
    return request


def exchange(transport: Transport, request: requests.PreparedRequest) -> Exchange:
    """Send the request and wait for what comes of it."""
    ended: queue.SimpleQueue[Exchange] = queue.SimpleQueue()
    transport.submit(request, ended.put)
    return ended.get(timeout=30)


@pytest.fixture
def make_transport() -> Iterator[Callable[..., Transport]]:
    """Transports that are allowed to dial loopback, closed after the test."""
    made: list[Transport] = []

    def make(**options: object) -> Transport:
        options = {"timeout": 1.0, "allowed_networks": LOOPBACK, **options}
        made.append(Transport(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close(0)


@pytest.fixture
def transport(make_transport: Callable[..., Transport]) -> Transport:
    return make_transport()
