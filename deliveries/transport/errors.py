"""What can go wrong with a request, as `requests` exceptions, and the short code of each.

Texts are for operators. They never contain the URL's path or query, a header or the body.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

import requests
from requests.exceptions import (
    ChunkedEncodingError,
    ConnectTimeout,
    ContentDecodingError,
    InvalidSchema,
    InvalidURL,
    ReadTimeout,
    SSLError,
)

from deliveries.transport.libcurl import pycurl


class ConnectionRefused(requests.ConnectionError):
    """Nobody listens at the address and port."""


class ConnectionReset(requests.ConnectionError):
    """The receiver, or something on the way, broke the connection off."""


class HostUnreachable(requests.ConnectionError):
    """There is no way to the address."""


class HostNotFound(requests.ConnectionError):
    """There is no such host, it has no address, or its own name servers are dead."""


class ResolverUnavailable(requests.ConnectionError):
    """The name servers answer for no name, as far as we know. Our fault."""


class DestinationBlocked(requests.ConnectionError):
    """The destination guard refused the URL or an address. Nothing was opened."""


class BadAnswer(requests.ConnectionError):
    """What came back is not HTTP, or more of it than we read."""


class TransportClosed(requests.ConnectionError):
    """The process is shutting down. The request may or may not have arrived."""


class NotStarted(requests.ConnectionError):
    """No place was free by `start_by`. Nothing was opened, looked up or sent."""


class LocalFault(requests.ConnectionError):
    """This machine could not make the request: no file descriptors, no memory, no certificates."""


# The first that fits. Every class of `requests` that we raise is a leaf here, or stands below
# its own subclasses.
_CODES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (requests.Timeout, "timeout"),
    (ResolverUnavailable, "own_dns"),
    (HostNotFound, "dns"),
    (ConnectionRefused, "refused"),
    (ConnectionReset, "reset"),
    (SSLError, "tls"),
    ((BadAnswer, ChunkedEncodingError, ContentDecodingError), "protocol"),
    ((DestinationBlocked, InvalidURL, InvalidSchema), "blocked"),
    (TransportClosed, "shutdown"),
    (NotStarted, "not_started"),
    (LocalFault, "internal"),
)


def classify(error: BaseException) -> str:
    """A stable code for a failure of the transport.

    `timeout`, `dns` (no such host, or its zone is dead), `own_dns` (our name servers),
    `refused`, `reset`, `tls`, `protocol` (not HTTP), `blocked` (the guard), `shutdown`,
    `not_started` (not by `start_by`), `internal` (this machine), `other`.
    """
    for classes, code in _CODES:
        if isinstance(error, classes):
            return code
    return "other"


@dataclass(frozen=True, slots=True)
class Failure:
    """What libcurl says about a request that failed. Times are in seconds, 0 for not reached."""

    code: int
    message: str
    os_errno: int
    https: bool
    timeout: float
    connect: float
    tls: float
    first_byte: float
    verify_result: int


# X509_V_ERR_* of OpenSSL, which are the same in its every version.
_CERTIFICATE_FAULTS = {
    9: "the certificate is not valid yet",
    10: "the certificate has expired",
    18: "the certificate is self-signed",
    19: "the certificate chain ends in a root that is not trusted",
    20: "the certificate's issuer is not trusted, or the chain is incomplete",
    21: "the certificate's issuer is not trusted, or the chain is incomplete",
    23: "the certificate has been revoked",
}

# CURLE_TOO_LARGE, which pycurl has no name for.
TOO_LARGE = 100

_TLS_CODES = frozenset({35, 51, 53, 54, 58, 59, 60, 64, 66, 80, 83, 90, 91, 98})
# Codes that have one meaning, whatever else libcurl says.
_OTHER_CODES: dict[int, tuple[type[requests.RequestException], str]] = {
    pycurl.E_GOT_NOTHING: (ConnectionReset, "the connection was closed without an answer"),
    pycurl.E_PARTIAL_FILE: (ChunkedEncodingError, "the answer was cut short"),
    pycurl.E_BAD_CONTENT_ENCODING: (ContentDecodingError, "the answer has an unknown encoding"),
    pycurl.E_UNSUPPORTED_PROTOCOL: (BadAnswer, "the answer is not HTTP/1"),
    pycurl.E_FTP_WEIRD_SERVER_REPLY: (BadAnswer, "the answer is malformed HTTP"),
    TOO_LARGE: (BadAnswer, "the answer's headers are too large"),
    pycurl.E_COULDNT_RESOLVE_HOST: (ResolverUnavailable, "the host name was not resolved"),
    pycurl.E_URL_MALFORMAT: (InvalidURL, "the URL is malformed"),
    pycurl.E_SSL_CACERT_BADFILE: (LocalFault, "the certificate authorities cannot be read"),
    pycurl.E_OUT_OF_MEMORY: (LocalFault, "out of memory"),
    pycurl.E_FAILED_INIT: (LocalFault, "libcurl could not start a request"),
}
_RESET_ERRNOS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})
_UNREACHABLE_ERRNOS = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.ENETDOWN, errno.EHOSTDOWN}
)


def from_failure(failure: Failure) -> requests.RequestException:
    """The exception for libcurl's code (https://curl.se/libcurl/c/libcurl-errors.html)."""
    code = failure.code
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return timed_out(failure)
    if code == pycurl.E_COULDNT_CONNECT:
        return _not_connected(failure)
    if code in _TLS_CODES:
        return _tls_fault(failure)
    if code in (pycurl.E_RECV_ERROR, pycurl.E_SEND_ERROR):
        if any(word in failure.message.lower() for word in ("header", "chunk")):
            return BadAnswer("the answer is malformed HTTP")
        return ConnectionReset("the connection was broken off")
    kind, text = _OTHER_CODES.get(code, (requests.RequestException, f"libcurl code {code}"))
    return kind(text)


def timed_out(failure: Failure) -> requests.RequestException:
    within = f"within {failure.timeout:g} s"
    if not failure.connect:
        return ConnectTimeout(f"no connection {within}")
    if failure.https and not failure.tls:
        return ConnectTimeout(f"TLS handshake not finished {within}")
    if not failure.first_byte:
        return ReadTimeout(f"no answer {within}")
    return ReadTimeout(f"answer not finished {within}")


def _not_connected(failure: Failure) -> requests.RequestException:
    if failure.os_errno == errno.ETIMEDOUT:
        return ConnectTimeout("no connection: the receiver's machine does not answer")
    if failure.os_errno in _UNREACHABLE_ERRNOS:
        return HostUnreachable("there is no route to the receiver")
    if failure.os_errno in _RESET_ERRNOS:
        return ConnectionReset("the connection was broken off")
    return ConnectionRefused("connection refused")


def _tls_fault(failure: Failure) -> requests.RequestException:
    if failure.verify_result in _CERTIFICATE_FAULTS:
        return SSLError(_CERTIFICATE_FAULTS[failure.verify_result])
    if failure.code == pycurl.E_PEER_FAILED_VERIFICATION:
        if "subject name" in failure.message:
            return SSLError("the certificate is for another host name")
        return SSLError(f"the certificate is not valid (OpenSSL {failure.verify_result})")
    if failure.os_errno in _RESET_ERRNOS:
        return SSLError("the connection was broken off during the TLS handshake")
    return SSLError("the TLS handshake failed")
