"""Why a pattern does not match a topic, in words, and how far it is from matching. Pure."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import NamedTuple

from subscriptions.topics.rules import RESERVED, is_reserved


class Miss(NamedTuple):
    """`distance`: 0 is a change of case alone; each token that differs adds up to 1."""

    distance: float
    why: str


def miss(pattern: str, topic: str) -> Miss | None:
    """Why a valid pattern does not match a valid topic; None if it is one of its `candidates`."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if is_reserved(topic) and wanted[0] != RESERVED:
        return Miss(1, f"the topic is reserved: only patterns that begin with {RESERVED} match")
    open_end = wanted[-1] == ">"
    if open_end:
        wanted.pop()
    different = [
        (number, want, token)
        for number, (want, token) in enumerate(zip(wanted, tokens, strict=False), start=1)
        if want not in ("*", token)
    ]
    too_short = len(wanted) + open_end - len(tokens)
    too_long = 0 if open_end else len(tokens) - len(wanted)
    if not different and too_short <= 0 and too_long <= 0:
        return None
    if not different:
        return Miss(max(too_short, too_long), _length(pattern, len(tokens), len(wanted), open_end))
    distance = sum(_difference(want, token) for _, want, token in different)
    distance += max(too_short, too_long, 0)
    number, want, token = different[0]
    if want.casefold() == token.casefold():
        why = f"{want!r} is not {token!r}: case counts"
    else:
        why = f"token {number} is {token!r}, and the pattern has {want!r} there"
    if len(different) > 1:
        why += f"; {len(different)} tokens differ in all"
    return Miss(distance, why)


def _difference(want: str, token: str) -> float:
    if want.casefold() == token.casefold():
        return 0.0
    return 1 - SequenceMatcher(None, want, token).ratio() / 2


def _length(pattern: str, tokens: int, wanted: int, open_end: bool) -> str:
    if open_end:
        return (
            f"the pattern asks for {wanted + 1} tokens or more, and the topic has {tokens}: "
            "'>' stands for at least one"
        )
    why = f"the pattern has {_tokens(wanted)}, and the topic has {tokens}"
    if pattern.endswith("*") and tokens > wanted:
        why += ": '*' stands for exactly one; '>' would match the rest"
    return why


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count} tokens"
