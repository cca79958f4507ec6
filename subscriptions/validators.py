"""Field validators. Each raises `ValidationError` with a sentence that says what to do."""

from __future__ import annotations

import re
from typing import Any

from django.core.exceptions import ValidationError

from subscriptions.destinations import DestinationRefused, check_url
from subscriptions.tenants import InvalidTenant, validate_tenant
from subscriptions.topics.rules import InvalidPattern, validate_pattern

MAX_PATTERNS = 1000
MAX_HEADERS = 50
MAX_HEADER_BYTES = 8192

# A header name is a token (RFC 9110, section 5.6.2); a value is visible ASCII, spaces and tabs
# (section 5.5; obsolete octets above 0x7F are left out, because receivers disagree on them).
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e\t]*[\x21-\x7e])?|")

# What the sender itself sets, and what would change how the message is framed or routed
# (RFC 9110, section 7.6.1; RFC 9112, section 6).
RESERVED_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)


def validate_name(value: str) -> None:
    if value != value.strip() or not value.isprintable():
        raise ValidationError(
            f"The name {value[:100]!r} begins or ends with a space, or has characters that do "
            "not print; leave them out."
        )


def validate_tenant_name(value: str) -> None:
    try:
        validate_tenant(value)
    except InvalidTenant as error:
        raise ValidationError(str(error)) from None


def validate_destination(value: str) -> None:
    try:
        check_url(value)
    except DestinationRefused as error:
        raise ValidationError(str(error)) from None


def validate_patterns(value: Any) -> None:
    """Refuse what is no list of valid patterns; each error names its pattern and the place of it.

    The first pattern is number 1: in a form, the first line.
    """
    if not isinstance(value, list):
        raise ValidationError(
            f'Topic patterns are a list such as ["order.*"], not a {type(value).__name__}.'
        )
    if not value:
        raise ValidationError("At least one topic pattern is needed, such as order.*")
    if len(value) > MAX_PATTERNS:
        raise ValidationError(f"There are {len(value)} topic patterns; {MAX_PATTERNS} are allowed.")
    errors = []
    for number, pattern in enumerate(value, start=1):
        try:
            validate_pattern(pattern)
        except InvalidPattern as error:
            errors.append(f"Pattern {number}: {error}")
    if errors:
        raise ValidationError(errors)


def is_reserved(name: str, prefix: str) -> bool:
    """Whether the sender sets this header itself; `prefix` is that of the plain headers.

    An underscore counts as a hyphen: servers that follow CGI cannot tell the two apart.
    """
    meant = name.lower().replace("_", "-")
    return meant in RESERVED_HEADERS or meant.startswith(("webhook-", f"{prefix.lower()}-"))


def sendable_headers(stored: Any) -> dict[str, str]:
    """A subscription's own headers, without those that the sender sets itself.

    Validation refuses reserved names, but a row may have been written past it, or under another
    prefix. Raises `ValueError` if `stored` is no object of texts.
    """
    from subscriptions.conf import conf

    if not isinstance(stored, dict) or not all(isinstance(text, str) for text in stored.values()):
        raise ValueError("the subscription's headers are not a JSON object of texts; repair them")
    prefix = conf().header_prefix
    return {name: text for name, text in stored.items() if not is_reserved(name, prefix)}


def validate_headers(value: Any) -> None:
    from subscriptions.conf import conf

    if not isinstance(value, dict) or not all(
        isinstance(part, str) for item in value.items() for part in item
    ):
        raise ValidationError('Headers are a JSON object of texts, such as {"X-Team": "blue"}.')
    if len(value) > MAX_HEADERS:
        raise ValidationError(f"{len(value)} headers are too many; the limit is {MAX_HEADERS}.")
    prefix = conf().header_prefix
    seen: set[str] = set()
    for name, text in value.items():
        lower = name.lower()
        if not _HEADER_NAME.fullmatch(name):
            raise ValidationError(
                f"{name[:100]!r} is no header name; use letters, digits and hyphens."
            )
        if is_reserved(name, prefix):
            raise ValidationError(f"The header {name} is set by the sender; leave it out.")
        if lower in seen:
            raise ValidationError(f"The header {name} is there twice; header names ignore case.")
        seen.add(lower)
        if len(text) > MAX_HEADER_BYTES or not _HEADER_VALUE.fullmatch(text):
            raise ValidationError(
                f"The value of the header {name} is not one line of printable ASCII of at most "
                f"{MAX_HEADER_BYTES} characters without spaces at its ends."
            )
