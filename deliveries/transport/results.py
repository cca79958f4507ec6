"""What a request comes to: a `Result`, and a `requests.Response` that is cheap to make."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers


class Timings(NamedTuple):
    """Seconds from the start of the request until each step was over; 0 if it did not happen.

    On a reused connection `connect` and `tls` are about 0.
    """

    name_lookup: float
    connect: float
    tls: float
    first_byte: float


@dataclass(frozen=True, slots=True)
class Result:
    """What one request came to. Exactly one of `response` and `error` is set.

    `elapsed` is in seconds from the start, DNS included, time spent waiting for a place among
    the requests in flight not. `remote_address` is the address that was dialled, "" if none was.
    """

    response: requests.Response | None
    error: requests.RequestException | None
    elapsed: float
    remote_address: str
    timings: Timings
    connection_reused: bool


class Wire:
    """What `Response.raw` holds: facts about the exchange. The body has been read already."""

    __slots__ = ("remote_address", "truncated")

    def __init__(self, remote_address: str, truncated: bool) -> None:
        self.remote_address = remote_address
        self.truncated = truncated

    def read(self, amount: int | None = None, **_: Any) -> bytes:
        return b""

    def close(self) -> None:
        """Nothing to close: connections belong to the transport."""


class WireResponse(requests.Response):
    """A `requests.Response` whose headers are parsed when they are first looked at.

    `content` is the beginning of the body only (`keep_response_bytes`); `truncated` says
    that there was more.
    """

    def __init__(
        self,
        request: requests.PreparedRequest,
        status_code: int,
        header_lines: list[bytes],
        body: bytes,
        seconds: float,
        raw: Wire,
    ) -> None:
        # Not super().__init__(): making its cookie jar alone costs more than the request.
        self.request = request
        self.url = request.url or ""
        self.status_code = status_code
        self.history = []
        self.raw = raw
        self._truncated = raw.truncated
        self._content = body
        self._content_consumed = True
        self._next = None
        self._header_lines = header_lines
        self._seconds = seconds

    @property
    def truncated(self) -> bool:
        return self._truncated

    @cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The final answer's headers, values as Latin-1; lines of one name joined by a comma."""
        return parse_headers(self._header_lines)

    @cached_property
    def reason(self) -> str:  # type: ignore[override]
        first = self._header_lines[0] if self._header_lines else b""
        return b"".join(first.split(None, 2)[2:]).strip().decode("latin-1")

    @cached_property
    def encoding(self) -> str | None:  # type: ignore[override]
        return get_encoding_from_headers(self.headers)

    @cached_property
    def elapsed(self) -> datetime.timedelta:  # type: ignore[override]
        return datetime.timedelta(seconds=self._seconds)

    @cached_property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]
        """Always empty: cookies are not kept."""
        return RequestsCookieJar()


def parse_headers(lines: list[bytes]) -> CaseInsensitiveDict[str]:
    """Header lines as libcurl hands them over; the status line and the empty line are skipped."""
    headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
    for line in lines[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            continue
        name, value = name.strip(), value.strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
