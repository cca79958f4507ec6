"""URLs taken apart and judged, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from requests.exceptions import InvalidSchema, InvalidURL

from deliveries.transport.errors import DestinationBlocked
from deliveries.transport.names import Pins
from subscriptions.conf import Network
from subscriptions.destinations import (
    Destination,
    DestinationRefused,
    MalformedURL,
    UnsupportedScheme,
    parse_url,
)

# The URLs that are remembered: those that were used last.
MAX_TARGETS = 20_000


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was taken apart, and the pins of a literal address."""

    destination: Destination
    pins: Pins | None


def target_reader(allowed: Sequence[Network]) -> Callable[[str], Target]:
    """A function that takes a URL apart.

    It raises `InvalidSchema`, `InvalidURL` or `DestinationBlocked`.
    """

    # Two URLs with the same address share its connections.
    pins_of = lru_cache(maxsize=MAX_TARGETS)(lambda port, address: Pins(port, (address,)))

    @lru_cache(maxsize=MAX_TARGETS)
    def read(url: str) -> Target:
        try:
            destination = parse_url(url, allowed)
        except UnsupportedScheme as error:
            raise InvalidSchema(str(error)) from None
        except MalformedURL as error:
            raise InvalidURL(str(error)) from None
        except DestinationRefused as error:
            raise DestinationBlocked(str(error)) from None
        if destination.address is None:
            return Target(destination, None)
        return Target(destination, pins_of(destination.port, str(destination.address)))

    return read
