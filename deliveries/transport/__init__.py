"""The one module that sends requests: libcurl's multi interface in the vocabulary of `requests`.

What holds for every request: a total deadline over DNS, connection, TLS, headers and body; only
http and https, HTTP/1.1; no redirects, cookies, proxies, `.netrc` or decompression, whatever the
environment says; an answer's body is read up to a limit; and nothing is dialled that
`subscriptions.destinations` refuses: it judges every address that a host name resolves to, and
again the one address that a socket is about to be opened for. libcurl itself never asks a name
server.

May import `subscriptions.conf` and `destinations` alone: it knows neither subscriptions nor
deliveries. Promises: each request that is submitted comes back exactly once, as an answer or as an
error with a name (`errors`).
"""

from deliveries.transport.client import Transport, transport
from deliveries.transport.errors import (
    BadAnswer,
    ConnectionRefused,
    ConnectionReset,
    DestinationBlocked,
    HostNotFound,
    HostUnreachable,
    LocalFault,
    NotStarted,
    ResolverUnavailable,
    TransportClosed,
    classify,
)
from deliveries.transport.exchange import Exchange, WireResponse
from deliveries.transport.text import text_for_operators

__all__ = [
    "BadAnswer",
    "ConnectionRefused",
    "ConnectionReset",
    "DestinationBlocked",
    "Exchange",
    "HostNotFound",
    "HostUnreachable",
    "LocalFault",
    "NotStarted",
    "ResolverUnavailable",
    "Transport",
    "TransportClosed",
    "WireResponse",
    "classify",
    "text_for_operators",
    "transport",
]
