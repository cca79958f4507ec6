"""The web process that generated requests are sent to: it reaches this machine and nothing else.

Generated URLs name hosts and addresses of the internet, and the API sends test events. Here every
host name means a loopback address on which nobody listens, and the transport refuses to open a
socket for any other address.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from deliveries.transport import handle
from subscriptions import destinations
from subscriptions.conf import Network
from webhooks_project.settings import *  # noqa: F403

_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
_getaddrinfo = socket.getaddrinfo


def _on_this_machine(host: Any, *more: Any, **named: Any) -> Any:
    here = host in (None, "127.0.0.1", "localhost")
    return _getaddrinfo(host if here else "127.0.0.99", *more, **named)


def _no_other_address(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, allowed: Sequence[Network]
) -> str | None:
    if address not in _LOOPBACK:
        return f"{address} is not of this machine"
    return destinations.check_address(address, allowed)


handle.check_address = _no_other_address  # type: ignore[attr-defined]
socket.getaddrinfo = _on_this_machine
