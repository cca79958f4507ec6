"""Topics, topic patterns, and the trie that finds the patterns which match a topic. Pure.

The rules are those of NATS subjects: tokens separated by dots; in a pattern, `*` stands for exactly
one token and `>`, as the last token, for one or more. Two rules are stricter than NATS': only
printable characters without white space are allowed (letters of any script are), and `*` and `>`
are never part of a longer token. Case counts, and text is compared as it is, without Unicode
normalization.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Hashable
from typing import Any, Generic, TypeVar

MAX_LENGTH = 255

# What nearly every topic looks like; the rest takes the careful way, which explains.
_PLAIN_TOPIC = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*", re.ASCII)


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


def matches(pattern: str, topic: str) -> bool:
    """Whether one valid pattern matches one valid topic. For many patterns use `PatternTrie`."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(
        want in ("*", token) for want, token in zip(wanted, tokens, strict=True)
    )


Key = TypeVar("Key", bound=Hashable)

# A node maps a token (or `*`) to the node below it. Where a pattern ends, no node is spent: its
# last token with a dot after it (no token holds a dot) maps to the keys, and a pattern that ends
# in `>` is entered one node higher, as its last two tokens. A single key stands for itself.
_Node = dict[str, Any]


class PatternTrie(Generic[Key]):
    """Which keys have a pattern that matches this topic?

    A match visits the nodes that agree with the topic so far, so its cost grows with the number
    of matching prefixes, not with the number of keys. Nothing recurses. Not thread-safe.
    """

    __slots__ = ("_patterns", "_root")

    def __init__(self) -> None:
        self._root: _Node = {}
        self._patterns: dict[Key, str | tuple[str, ...]] = {}

    def __len__(self) -> int:
        """The number of keys."""
        return len(self._patterns)

    def __contains__(self, key: Key) -> bool:
        return key in self._patterns

    def add(self, pattern: str, key: Key) -> None:
        """Add one pattern of `key`; it may have many. `InvalidPattern` changes nothing."""
        validate_pattern(pattern)
        known = self._patterns.get(key, ())
        known = (known,) if isinstance(known, str) else known
        if pattern in known:
            return
        self._patterns[key] = (*known, pattern) if known else pattern
        path, slot = _place(pattern)
        node = self._root
        for token in path:
            below = node.get(token)
            if below is None:
                # Interned: the same few words stand in very many patterns.
                below = node[sys.intern(token)] = {}
            node = below
        there = node.get(slot)
        if there is None:
            node[slot] = key
        elif type(there) is set:
            there.add(key)
        else:
            node[slot] = {there, key}

    def discard(self, key: Key) -> None:
        """Remove all patterns of `key`, and what only they needed. An unknown key is no error."""
        patterns = self._patterns.pop(key, ())
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            self._remove(pattern, key)

    def _remove(self, pattern: str, key: Key) -> None:
        path, slot = _place(pattern)
        nodes = [self._root]
        for token in path:
            nodes.append(nodes[-1][token])
        there = nodes[-1][slot]
        if type(there) is set and len(there) > 1:
            there.remove(key)
            return
        del nodes[-1][slot]
        for token in reversed(path):
            if nodes.pop():
                return
            del nodes[-1][token]

    def match(self, topic: str) -> list[Key]:
        """The keys with a pattern that matches the valid topic, each once, in no order."""
        tokens = topic.split(".")
        last = tokens.pop()
        found = [self._root[">"]] if ">" in self._root else []
        nodes = [self._root]
        for token in tokens:
            tail = token + ".>"
            below = []
            for node in nodes:
                if tail in node:
                    found.append(node[tail])
                if "*.>" in node:
                    found.append(node["*.>"])
                if token in node:
                    below.append(node[token])
                if "*" in node:
                    below.append(node["*"])
            if not below:
                break
            nodes = below
        else:
            end = last + "."
            for node in nodes:
                if end in node:
                    found.append(node[end])
                if "*." in node:
                    found.append(node["*."])
        return _distinct(found)


def _place(pattern: str) -> tuple[list[str], str]:
    """The way from the root to the node where the pattern is entered, and its slot there."""
    path = pattern.split(".")
    slot = path.pop()
    if slot != ">":
        return path, slot + "."
    return (path, path.pop() + ".>") if path else (path, slot)


def _distinct(found: list[Any]) -> list[Any]:
    if len(found) == 1:
        return list(found[0]) if type(found[0]) is set else found
    keys: set[Any] = set()
    for there in found:
        if type(there) is set:
            keys |= there
        else:
            keys.add(there)
    return list(keys)


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
    if "" in text.split("."):
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
