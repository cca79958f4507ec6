"""The settings of e-mail in one address, such as `smtp+tls://user:password@mail.example.com:587`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import unquote, urlsplit

# The scheme's port, whether the connection becomes TLS (STARTTLS), and whether it begins with it.
_SCHEMES = {"smtp": (25, False, False), "smtp+tls": (587, True, False), "smtps": (465, False, True)}


class Email(NamedTuple):
    backend: str
    host: str = ""
    port: int = 0
    user: str = ""
    password: str = ""
    starttls: bool = False
    tls: bool = False


def email_settings(url: str) -> Email:
    """Raises `ValueError` with what is wrong, which does not repeat the password."""
    wanted = (
        "it must be like smtp+tls://user:password@mail.example.com:587 (or smtp://, smtps://, "
        "console://), with special characters percent-encoded"
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if parts.scheme == "console":
        return Email("django.core.mail.backends.console.EmailBackend")
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(wanted)
    default, starttls, tls = _SCHEMES[parts.scheme]
    return Email(
        "django.core.mail.backends.smtp.EmailBackend",
        parts.hostname,
        port or default,
        unquote(parts.username or ""),
        unquote(parts.password or ""),
        starttls,
        tls,
    )
