from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator

import pytest
import requests

from deliveries.transport import Transport

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))


def post(url: str, body: bytes = b"{}", **headers: str) -> requests.PreparedRequest:
    request = requests.PreparedRequest()
    request.prepare(
        method="POST", url=url, data=body, headers={"Content-Type": "application/json", **headers}
    )
    return request


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
