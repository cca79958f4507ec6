"""What publishers of every kind publish, and how they are told to."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from typing import Any


def note(draw: random.Random, size: int = 100) -> str:
    """A text of so many bytes that no compression would make small."""
    return base64.b64encode(draw.randbytes(size))[:size].decode()


def draft(number: int, text: str) -> dict[str, Any]:
    """The payload of the event number `number`."""
    return {
        "id": number + 1,
        "number": f"A-{number}",
        "customer": "Ada Lovelace",
        "note": text,
    }


def requests(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        yield json.loads(line)
