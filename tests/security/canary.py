"""Secrets that must not be found where they do not belong, in any of their shapes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from urllib.parse import quote


@dataclass(frozen=True)
class Canary:
    """`what` names it in a failure; `shapes` are all the texts that would give it away."""

    what: str
    shapes: tuple[str, ...]

    def sings_in(self, text: str) -> str:
        """The shape that is in `text`, if one is; else empty."""
        return next((shape for shape in self.shapes if shape in text), "")


def signing_secret(seed: bytes) -> tuple[str, Canary]:
    """A valid signing secret made of `seed`, and the canary that it is."""
    text = f"whsec_{base64.b64encode((seed * 32)[:32]).decode()}"
    return text, canary_of(text)


def canary_of(text: str) -> Canary:
    """The canary that the signing secret `text` is."""
    encoded = text.removeprefix("whsec_")
    key = base64.b64decode(encoded)
    return Canary(
        f"signing secret {text[6:18]}…",
        (
            encoded.rstrip("="),
            base64.urlsafe_b64encode(key).decode().rstrip("="),
            quote(encoded.rstrip("="), safe=""),
            key.hex(),
            repr(key)[2:-1],
            text.encode().hex(),
            *_within_base64(text),
        ),
    )


def word(what: str, text: str) -> Canary:
    return Canary(what, (text, text.encode().hex(), *_within_base64(text)))


def _within_base64(text: str) -> list[str]:
    """What base64 of anything around `text` must hold: it depends on the offset modulo 3."""
    raw = text.encode()
    return [
        base64.b64encode(raw[start : start + (len(raw) - start) // 3 * 3]).decode()
        for start in range(3)
    ]
