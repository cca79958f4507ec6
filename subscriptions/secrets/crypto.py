"""Encryption of what must not lie readable in the database: Fernet, with keys of its own.

The keys are `WEBHOOKS_SECRET_KEYS`, newest first: the first encrypts, all of them decrypt.
Without a key nothing is encrypted and nothing is read; there is no fallback.
"""

from __future__ import annotations

from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.core.exceptions import ImproperlyConfigured

from subscriptions.conf import conf

_MAKE_ONE = (
    "`python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'`"
)


class SecretUnreadable(Exception):
    """No key in force decrypts the stored text. The message holds neither text nor key."""

    def __init__(self) -> None:
        super().__init__(
            "A stored secret cannot be decrypted: no key of WEBHOOKS_SECRET_KEYS made it, or it "
            "was altered. Put the key that was in force back into the list (older keys go last), "
            "or rotate the subscription's secret."
        )


def encrypt(plain: bytes) -> str:
    """Encrypt under the newest key. `ImproperlyConfigured` if there is no key."""
    return _fernet(conf().secret_keys).encrypt(plain).decode("ascii")


def decrypt(token: str) -> bytes:
    """Decrypt what `encrypt` made. `SecretUnreadable` if no key fits, or it was altered."""
    try:
        return _fernet(conf().secret_keys).decrypt(token)
    except (InvalidToken, ValueError):
        raise SecretUnreadable from None


def readable(token: str) -> bool:
    """Whether a key in force decrypts it."""
    try:
        decrypt(token)
    except SecretUnreadable:
        return False
    return True


def is_newest(token: str) -> bool:
    """Whether the newest key decrypts it, so that it needs no other."""
    try:
        _fernet(conf().secret_keys[:1]).decrypt(token)
    except (InvalidToken, ValueError):
        return False
    return True


def rotate(token: str) -> str:
    """The same secret, re-encrypted under the newest key. `SecretUnreadable` as `decrypt`."""
    try:
        return _fernet(conf().secret_keys).rotate(token).decode("ascii")
    except (InvalidToken, ValueError):
        raise SecretUnreadable from None


@lru_cache(maxsize=8)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    if not keys:
        raise ImproperlyConfigured(
            "WEBHOOKS_SECRET_KEYS is empty, so signing secrets can be neither stored nor read. "
            f"Make a key with {_MAKE_ONE} and keep a copy: secrets are lost with it."
        )
    try:
        return MultiFernet([Fernet(key) for key in keys])
    except ValueError:
        raise ImproperlyConfigured(
            "secret_keys holds a text that is no Fernet key (32 bytes in URL-safe base64). "
            f"Make one with {_MAKE_ONE}."
        ) from None
