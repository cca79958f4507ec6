"""One reusable libcurl handle: what it is given of a request, and what is read of the answer."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import requests
from requests.exceptions import InvalidHeader

from deliveries.transport.errors import (
    BadAnswer,
    DestinationBlocked,
    Failure,
    LocalFault,
    from_failure,
)
from deliveries.transport.exchange import Exchange, WireResponse, without_early_answers
from deliveries.transport.jobs import Job
from deliveries.transport.libcurl import pycurl
from deliveries.transport.names import Pin
from subscriptions.conf import Network
from subscriptions.destinations import Destination, check_address

# How much room all header lines of a request's answers have together, in bytes, with what it
# costs us to keep a line. It also ends a flood of 1xx answers.
HEADER_ROOM = 65536
LINE_COST = 64

# Seconds that a pin's entry stays in libcurl's DNS cache, and after which a handle renews it. The
# difference must be longer than any request.
PIN_LIFETIME = 1200
PIN_RENEWAL = 300

# How often libcurl may turn to one request without a byte of a body moving. It ends floods that no
# limit on bytes sees, such as a chunk extension without end, after about 0.2 s of computing time.
# A turn is up to 160 KB; an answer has about 10 of them, and two more for every chunk. They are
# counted only of requests that have lasted a while, in seconds.
MAX_IDLE_TURNS = 500
TURNS_COUNTED_AFTER = 0.2

# Bytes that the kernel keeps of an answer until we read them.
RECEIVE_BUFFER = 65536

IDLE_CONNECTION = 60
CONNECTION_LIFETIME = 600

# Set by libcurl itself, or against the rules of this transport (see the package's docstring).
_OWN_HEADERS = frozenset({"content-length", "transfer-encoding", "accept-encoding", "expect"})

OpenSocket = Callable[[int, int, int], socket.socket]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is the same for all requests of a transport."""

    ca_file: str
    allowed: Sequence[Network]
    max_response_bytes: int
    keep_response_bytes: int
    open_socket: OpenSocket


class Handle:
    """A `pycurl.Curl` with everything set that never changes, and the memory of what did."""

    __slots__ = (
        "_body_size",
        "_counting",
        "_fresh",
        "_idle_turns",
        "_limits",
        "_lines",
        "_method",
        "_moved",
        "_pin",
        "_pin_set",
        "_room",
        "_timeout_ms",
        "_url",
        "body",
        "curl",
        "fault",
        "https",
        "job",
        "received",
    )

    job: Job

    def __init__(self, limits: Limits, opened: Callable[[int, int], int]) -> None:
        self._limits = limits
        self._fresh = False
        self._counting = False
        self._url = ""
        self._method = ""
        self._timeout_ms = 0
        self._pin: Pin | None = None
        self._pin_set = 0.0
        self._body_size = 0
        self._forget_answer()
        self.curl = self._new_curl(opened)

    def _forget_answer(self) -> None:
        self._lines: list[bytes] = []
        self._room = HEADER_ROOM
        self._idle_turns = 0
        self._moved = 0
        self.body = b""
        self.received = 0
        self.fault: requests.RequestException | None = None

    def _new_curl(self, opened: Callable[[int, int], int]) -> pycurl.Curl:
        curl = pycurl.Curl()
        for option, value in (
            (pycurl.NOSIGNAL, 1),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
            (pycurl.FOLLOWLOCATION, 0),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
            (pycurl.HTTP09_ALLOWED, 0),
            (pycurl.HTTP_CONTENT_DECODING, 0),
            (pycurl.PATH_AS_IS, 1),
            # An empty proxy is no proxy, whatever the environment says.
            (pycurl.PROXY, ""),
            (pycurl.NOPROXY, "*"),
            (pycurl.NETRC, pycurl.NETRC_IGNORED),
            (pycurl.SSL_VERIFYPEER, 1),
            (pycurl.SSL_VERIFYHOST, 2),
            (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
            (pycurl.CAINFO, self._limits.ca_file),
            (pycurl.TCP_NODELAY, 1),
            (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.DNS_CACHE_TIMEOUT, PIN_LIFETIME),
            (pycurl.MAXAGE_CONN, IDLE_CONNECTION),
            (pycurl.MAXLIFETIME_CONN, CONNECTION_LIFETIME),
            (pycurl.OPENSOCKETFUNCTION, self._open_socket),
            (pycurl.SOCKOPTFUNCTION, opened),
            (pycurl.HEADERFUNCTION, self._on_header),
            (pycurl.WRITEFUNCTION, self._on_body),
            (pycurl.NOPROGRESS, 1),
            (pycurl.XFERINFOFUNCTION, self._on_progress),
        ):
            curl.setopt(option, value)
        # The directory that libcurl was built with would be trusted besides `ca_file`.
        curl.unsetopt(pycurl.CAPATH)
        return curl

    def prepare(self, job: Job, destination: Destination, pin: Pin, now: float) -> None:
        """Set what differs from the last request. Raises `InvalidHeader`."""
        curl = self.curl
        self.job = job
        self.https = destination.scheme == "https"
        body = job.request.body
        data = body if isinstance(body, bytes) else b""
        curl.setopt(pycurl.HTTPHEADER, header_lines(job.request.headers))
        if destination.url != self._url:
            curl.setopt(pycurl.URL, destination.url)
            self._url = destination.url
        if pin is not self._pin or now - self._pin_set > PIN_RENEWAL:
            curl.setopt(pycurl.CONNECT_TO, pin.connect_to)
            curl.setopt(pycurl.RESOLVE, pin.resolve)
            self._pin = pin
            self._pin_set = now
        self._set_timeout(now)
        method = job.request.method or "POST"
        if method != self._method or body is None:
            self._set_method(method, body is not None)
        if body is not None or method == "POST":
            curl.setopt(pycurl.POSTFIELDS, data)
            self._body_size = len(data)

    def _set_timeout(self, now: float) -> None:
        timeout_ms = max(1, round((self.job.deadline - now) * 1000))
        if timeout_ms != self._timeout_ms:
            self.curl.setopt(pycurl.TIMEOUT_MS, timeout_ms)
            self._timeout_ms = timeout_ms

    def met_dead_connections_only(self, code: int) -> bool:
        """Whether libcurl tried one kept connection after the other, and all of them were dead.

        It gives a request up after five, of which none took a byte of it.
        """
        reused = self.curl.getinfo(pycurl.NUM_CONNECTS) == 0
        return code == pycurl.E_SEND_ERROR and reused and not self._fresh

    def prepare_again(self, now: float) -> None:
        """Set what sends the same request on a new connection."""
        self._fresh = True
        self.curl.setopt(pycurl.FRESH_CONNECT, 1)
        self._forget_answer()
        self._set_timeout(now)

    def _set_method(self, method: str, has_body: bool) -> None:
        self.curl.unsetopt(pycurl.CUSTOMREQUEST)
        if method == "HEAD":
            self.curl.setopt(pycurl.NOBODY, 1)
        elif has_body or method == "POST":
            self.curl.setopt(pycurl.POST, 1)
        else:
            self.curl.setopt(pycurl.HTTPGET, 1)
        if method not in ("HEAD", "POST", "GET") or (method == "GET" and has_body):
            self.curl.setopt(pycurl.CUSTOMREQUEST, method)
        # A request without a body changes more than its method; set everything the next time.
        self._method = method if has_body else ""

    def count_turns(self) -> None:
        """End the request if it goes on and on and nothing moves. Again does nothing."""
        if not self._counting:
            self._counting = True
            self.curl.setopt(pycurl.NOPROGRESS, 0)

    def release(self) -> Job:
        """Let go of the request and its answer, so that an idle handle keeps no memory."""
        job = self.job
        del self.job
        self._forget_answer()
        if self._counting:
            self._counting = False
            self.curl.setopt(pycurl.NOPROGRESS, 1)
        if self._fresh:
            self._fresh = False
            self.curl.setopt(pycurl.FRESH_CONNECT, 0)
        if self._body_size > 4096:
            self.curl.setopt(pycurl.POSTFIELDS, b"")
            self._body_size = 0
        return job

    def _open_socket(self, purpose: int, address: Any) -> Any:
        """libcurl is about to dial: the last word on where. No socket exists before this."""
        family, kind, protocol, where = address
        dialled = where[0] if isinstance(where, tuple) else str(where)
        reason = self._refusal(dialled)
        if reason is not None:
            self.fault = DestinationBlocked(reason)
            return pycurl.SOCKET_BAD
        try:
            opened = self._limits.open_socket(family, kind, protocol)
            # The kernel would let a flood grow this to megabytes, all read in one go.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            return opened
        except OSError as error:
            self.fault = LocalFault(f"no socket could be opened ({error.strerror})")
            return pycurl.SOCKET_BAD

    def _refusal(self, address: str) -> str | None:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return f"{address} is not an IP address"
        if self._pin is None or parsed not in self._pin.addresses:
            return f"{address} is not an address that was looked up for this host"
        return check_address(parsed, self._limits.allowed)

    def _on_header(self, line: bytes) -> int | None:
        self._room -= len(line) + LINE_COST
        if self._room < 0:
            self.fault = BadAnswer(f"the answer's headers have more than {HEADER_ROOM} bytes")
            return 0
        self._lines.append(line)
        return None

    def _on_progress(self, total: int, received: int, to_send: int, sent: int) -> int | None:
        if received + sent != self._moved:
            self._moved = received + sent
            return None
        self._idle_turns += 1
        if self._idle_turns <= MAX_IDLE_TURNS:
            return None
        self.fault = BadAnswer("the answer goes on and on and says nothing")
        return 1

    def _on_body(self, data: bytes) -> int | None:
        keep = self._limits.keep_response_bytes - len(self.body)
        if keep > 0:
            self.body += data[:keep]
        self.received += len(data)
        return None if self.received <= self._limits.max_response_bytes else 0

    def succeeded(self) -> Exchange:
        """What came of a request that libcurl calls complete."""
        return self._answered(truncated=False)

    def failed(self, code: int, message: str) -> Exchange:
        """What came of a request that libcurl gave up, or that we made it give up."""
        if code == pycurl.E_WRITE_ERROR and self.received > self._limits.max_response_bytes:
            # We stopped reading a long body. The answer stands.
            return self._answered(truncated=True)
        return self._no_answer(self.fault or from_failure(self._failure(code, message)))

    def _answered(self, *, truncated: bool) -> Exchange:
        job, getinfo, lines = self.job, self.curl.getinfo, self._lines
        status = getinfo(pycurl.RESPONSE_CODE)
        expected = _status_lines(status)
        if not lines[0].startswith(expected):
            lines = without_early_answers(lines)
            if not lines or not lines[0].startswith(expected):
                return self._no_answer(BadAnswer("the answer is not HTTP/1.0 or HTTP/1.1"))
        elapsed = time.monotonic() - job.started
        response = WireResponse(job.request, status, lines, self.body, elapsed, truncated)
        return Exchange(response, None, elapsed, getinfo(pycurl.PRIMARY_IP))

    def _no_answer(self, error: requests.RequestException) -> Exchange:
        error.request = self.job.request
        elapsed = time.monotonic() - self.job.started
        return Exchange(None, error, elapsed, self.curl.getinfo(pycurl.PRIMARY_IP))

    def _failure(self, code: int, message: str) -> Failure:
        getinfo = self.curl.getinfo
        return Failure(
            code=code,
            message=message,
            os_errno=getinfo(pycurl.OS_ERRNO),
            https=self.https,
            timeout=self.job.timeout,
            connect=getinfo(pycurl.CONNECT_TIME),
            tls=getinfo(pycurl.APPCONNECT_TIME),
            first_byte=getinfo(pycurl.STARTTRANSFER_TIME),
            verify_result=getinfo(pycurl.SSL_VERIFYRESULT),
        )


@lru_cache(maxsize=1000)
def _status_lines(status: int) -> tuple[bytes, bytes]:
    """How an answer with this status begins. libcurl takes any version for HTTP/1."""
    return b"HTTP/1.1 %d" % status, b"HTTP/1.0 %d" % status


def header_lines(headers: Mapping[str, str | bytes]) -> list[str]:
    """Header lines in libcurl's spelling. Raises `InvalidHeader`."""
    lines = ["Expect:"]
    has_type = False
    for name, value in headers.items():
        lowered = name.lower()
        if lowered in _OWN_HEADERS:
            continue
        if lowered == "content-type":
            has_type = True
        if isinstance(value, bytes):
            value = value.decode("latin-1")
        # libcurl's way to send a header without a value; "Name:" would leave it out.
        lines.append(f"{name}: {value}" if value else f"{name};")
    if not has_type:
        lines.append("Content-Type:")
    text = "\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\r" in text or "\0" in text or not text.isascii():
        raise InvalidHeader("a header contains a line break, a NUL or a character beyond ASCII")
    return lines
