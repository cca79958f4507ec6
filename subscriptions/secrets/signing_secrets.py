"""Signing secrets as Standard Webhooks writes them: `whsec_` and the key in base64.

Nothing here puts a secret into an error, a log or a repr.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from functools import lru_cache

PREFIX = "whsec_"
GENERATED_BYTES = 32
# Standard Webhooks, "Signature scheme": between 24 bytes (192 bits) and 64 bytes (512 bits).
MIN_BYTES = 24
MAX_BYTES = 64
# How many secrets of a subscription are in force at once: each is a signature in the header of
# every request, and receivers take only so many bytes of headers.
MAX_IN_FORCE = 10
TOO_MANY = (
    f"{MAX_IN_FORCE} secrets are in force, and no more may be. Let the others end at once (an "
    "overlap of 0), or wait until one of them has ended."
)


class InvalidSecret(ValueError):
    """The text is not a signing secret. The message never repeats it."""


def generate() -> str:
    """A new secret with 32 random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(GENERATED_BYTES)).decode("ascii")


def parse(text: object) -> str:
    """The secret in `text`, without white space around it; `InvalidSecret` if it is none.

    Only canonical, padded standard base64 is taken: receivers decode the secret with
    libraries of many languages, and what one of them tolerates another refuses.
    """
    if not isinstance(text, str):
        raise InvalidSecret(f"The secret is of type {type(text).__name__}; give it as text.")
    secret = text.strip()
    if not secret.startswith(PREFIX):
        raise InvalidSecret(
            f"The secret does not begin with {PREFIX}. Write {PREFIX} and the base64 of "
            f"{MIN_BYTES} to {MAX_BYTES} random bytes."
        )
    encoded = secret[len(PREFIX) :]
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key or base64.b64encode(key).decode("ascii") != encoded:
        raise InvalidSecret(
            f"What follows {PREFIX} is not standard base64 with its padding (A-Z, a-z, 0-9, "
            f"+, / and a closing =). Copy the secret again, whole."
        )
    if not MIN_BYTES <= len(key) <= MAX_BYTES:
        raise InvalidSecret(
            f"The secret holds {len(key)} bytes; Standard Webhooks asks for {MIN_BYTES} to "
            f"{MAX_BYTES}."
        )
    return secret


@lru_cache(maxsize=10_000)
def key_bytes(secret: str) -> bytes:
    """The HMAC key in a secret that `generate` or `parse` returned."""
    return base64.b64decode(secret[len(PREFIX) :])
