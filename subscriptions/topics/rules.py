"""What a topic is, what a pattern is, and which patterns match a topic. Pure.

The rules are those of NATS subjects: tokens separated by dots; in a pattern, `*` stands for exactly
one token and `>`, as the last token, for one or more. Two rules are stricter than NATS': only
printable characters without white space are allowed (letters of any script are), and `*` and `>`
are never part of a longer token. Case counts, and text is compared as it is, without Unicode
normalization. Ten tokens are the limit, so that `candidates` stays a list of 2,047 at most.

Topics whose first token is `system` are the project's own. As NATS does with `$SYS`, a pattern
matches them only if it begins with that very token: `>` and `*.>` do not.
"""

from __future__ import annotations

import re

MAX_LENGTH = 255
MAX_TOKENS = 10
RESERVED = "system"

# What nearly every topic looks like; others take the slow path, which says what is wrong.
_PLAIN_TOPIC = re.compile(rf"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){{0,{MAX_TOKENS - 1}}}", re.ASCII)


class InvalidTopic(ValueError):
    """The text is not a topic that an event can have."""


class InvalidPattern(ValueError):
    """The text is not a topic pattern."""


def validate_topic(topic: object) -> str:
    """`topic`, if an event can have it; otherwise `InvalidTopic` says what is wrong."""
    if isinstance(topic, str) and len(topic) <= MAX_LENGTH and _PLAIN_TOPIC.fullmatch(topic):
        return topic
    fault = _text_fault(topic)
    if fault or not isinstance(topic, str):
        raise InvalidTopic(f"The topic {_short(topic)} {fault}")
    if "*" in topic or ">" in topic:
        raise InvalidTopic(
            f"The topic {_short(topic)} holds a wildcard; * and > belong in the patterns of "
            "subscriptions. Name the topic in full."
        )
    return topic


def is_reserved(topic: str) -> bool:
    """Whether a topic is the project's own, so that applications do not publish it."""
    return topic.partition(".")[0] == RESERVED


def validate_published(topic: object) -> str:
    """`validate_topic` for what applications publish; `InvalidTopic` for a reserved one too."""
    topic = validate_topic(topic)
    if is_reserved(topic):
        raise InvalidTopic(
            f"The topic {_short(topic)} is reserved: topics that begin with {RESERVED!r} are the "
            "webhook sender's own. Choose another first token."
        )
    return topic


def validate_pattern(pattern: object) -> str:
    """`pattern`, if it is a topic pattern; otherwise `InvalidPattern` says what is wrong."""
    if isinstance(pattern, str) and len(pattern) <= MAX_LENGTH and _PLAIN_TOPIC.fullmatch(pattern):
        return pattern
    fault = _text_fault(pattern)
    if fault or not isinstance(pattern, str):
        raise InvalidPattern(f"The topic pattern {_short(pattern)} {fault}")
    tokens = pattern.split(".")
    if ">" in tokens[:-1]:
        raise InvalidPattern(
            f"The topic pattern {_short(pattern)} has > before its end; > stands for all that "
            "follows, so it can only be the last token. Use * for one token in the middle."
        )
    for token in tokens:
        if len(token) > 1 and ("*" in token or ">" in token):
            raise InvalidPattern(
                f"The topic pattern {_short(pattern)} has a wildcard inside the token "
                f"{_short(token)}; * and > stand for whole tokens. Put a dot around it, or "
                "remove it."
            )
    return pattern


def candidates(topic: str) -> list[str]:
    """Every pattern that matches this valid topic, and no other: 2^(n+1) - 1 for n tokens.

    Of a reserved one those alone that begin with its first token: 2^n - 1.
    """
    *tokens, last = topic.split(".")
    found = [">"]
    heads = [""]
    for number, token in enumerate(tokens):
        words = [f"{token}.", "*."]
        if number == 0 and token == RESERVED:
            found, words = [], [f"{token}."]
        heads = [head + word for head in heads for word in words]
        found += [f"{head}>" for head in heads]
    if topic == RESERVED:
        return [topic]
    return found + [head + word for head in heads for word in (last, "*")]


def _text_fault(text: object) -> str:
    """What topics and patterns have in common; empty if nothing is wrong."""
    if not isinstance(text, str):
        return f"is a {type(text).__name__}; give it as a string."
    if not text:
        return "is empty; give at least one token, such as orders.created."
    if len(text) > MAX_LENGTH:
        return f"has {len(text)} characters; {MAX_LENGTH} are allowed."
    for character in text:
        # Lone surrogates, NUL and the invisible format characters are not printable either.
        if character.isspace() or not character.isprintable():
            return (
                f"holds {character!a}, which is white space or cannot be printed; remove it. "
                "Tokens are separated by dots alone."
            )
    tokens = text.split(".")
    if len(tokens) > MAX_TOKENS:
        return (
            f"has {len(tokens)} tokens; {MAX_TOKENS} are allowed. Put what is finer into the "
            "payload, or join tokens with a hyphen."
        )
    if "" in tokens:
        return (
            "has an empty token (a dot at its beginning or end, or two in a row); remove the dot, "
            "or name the token."
        )
    return ""


def _short(value: object) -> str:
    if isinstance(value, str) and len(value) > 80:
        return repr(value[:80]) + "…"
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"
