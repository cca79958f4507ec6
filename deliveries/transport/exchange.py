"""What a request comes to: an `Exchange`, and a `requests.Response` that is cheap to make."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property

import requests
from requests.cookies import RequestsCookieJar
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers


@dataclass(slots=True)
class Exchange:
    """What one request came to. Exactly one of `response` and `error` is set.

    `elapsed` is in seconds from its start, DNS included, the wait for a place not.
    `remote_address` is the address that was dialled, "" if none was.
    """

    response: requests.Response | None
    error: requests.RequestException | None
    elapsed: float
    remote_address: str

    def answer(self) -> requests.Response | requests.RequestException:
        # A response that is no success is false.
        if self.response is not None:
            return self.response
        assert self.error is not None
        return self.error


class WireResponse(requests.Response):
    """A `requests.Response` whose headers are parsed when they are first looked at.

    `content` is the beginning of the body only (`keep_response_bytes`); `truncated` says
    that it was not read to its end.
    """

    # The same for all of them. Not by super().__init__(): making its cookie jar alone costs
    # more than the request.
    raw = None
    _content_consumed = True
    _next = None

    def __init__(
        self,
        request: requests.PreparedRequest,
        status_code: int,
        head: list[bytes],
        body: bytes,
        seconds: float,
        truncated: bool,
    ) -> None:
        self.request = request
        self.url = request.url or ""
        self.status_code = status_code
        self.truncated = truncated
        self._content = body
        self._head = head
        self._seconds = seconds

    @cached_property
    def headers(self) -> CaseInsensitiveDict[str]:  # type: ignore[override]
        """The final answer's headers, values as Latin-1; lines of one name joined by a comma."""
        headers: CaseInsensitiveDict[str] = CaseInsensitiveDict()
        for line in self._head[1:]:
            if not line.strip():
                # Trailers follow, which are no headers (RFC 9110, section 6.5.1).
                break
            name, colon, value = line.decode("latin-1").partition(":")
            if colon:
                name, value = name.strip(), value.strip()
                headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    @cached_property
    def reason(self) -> str:  # type: ignore[override]
        return b"".join(self._head[0].split(None, 2)[2:]).strip().decode("latin-1")

    @cached_property
    def encoding(self) -> str | None:  # type: ignore[override]
        return get_encoding_from_headers(self.headers)

    @cached_property
    def elapsed(self) -> datetime.timedelta:  # type: ignore[override]
        return datetime.timedelta(seconds=self._seconds)

    @cached_property
    def history(self) -> list[requests.Response]:  # type: ignore[override]
        """Always empty: redirects are not followed."""
        return []

    @cached_property
    def cookies(self) -> RequestsCookieJar:  # type: ignore[override]
        """Always empty: cookies are not kept."""
        return RequestsCookieJar()


def without_early_answers(lines: list[bytes]) -> list[bytes]:
    """The header lines of the final answer, of all that came: 1xx answers stand before it."""
    start = 0
    for number, line in enumerate(lines):
        if not line.strip():
            if lines[start][8:10] != b" 1":
                break
            start = number + 1
    return lines[start:]
