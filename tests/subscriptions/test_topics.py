from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.topics.rules import (
    MAX_TOKENS,
    InvalidPattern,
    InvalidTopic,
    candidates,
    validate_pattern,
    validate_topic,
)
from subscriptions.validators import validate_patterns
from tests.topics import matches, patterns, topics

GOOD_TOPICS = [
    "a",
    "order.created",
    "ORDER.Created",
    "a-b.c_d.1",
    "a:b/c.$x",
    "größe.日本.é",
    "x" * 255,
]
GOOD_PATTERNS = [*GOOD_TOPICS, "*", ">", "*.*", "a.*.c", "a.>", "*.>", "attacker.*.events.>"]
# What is wrong, as a word of the message.
BAD_TEXTS = [
    ("", "empty"),
    (".", "empty token"),
    ("a..b", "empty token"),
    (".a", "empty token"),
    ("a.", "empty token"),
    ("a b", "white space"),
    (" a", "white space"),
    ("a\n", "white space"),
    ("a\t.b", "white space"),
    ("a\u00a0b", "white space"),
    ("a\u2028b", "white space"),
    ("a\x00b", "cannot be printed"),
    ("a\x7f", "cannot be printed"),
    ("a\u200bb", "cannot be printed"),
    ("a\u202eb", "cannot be printed"),
    ("a\ud800b", "cannot be printed"),
    ("x" * 256, "256 characters"),
    (None, "NoneType"),
    (7, "int"),
    (b"order", "bytes"),
    (["order"], "list"),
]


@pytest.mark.parametrize("topic", GOOD_TOPICS)
def test_a_good_topic_is_returned(topic: str) -> None:
    assert validate_topic(topic) == topic


@pytest.mark.parametrize("pattern", GOOD_PATTERNS)
def test_a_good_pattern_is_returned(pattern: str) -> None:
    assert validate_pattern(pattern) == pattern


@pytest.mark.parametrize(("text", "word"), BAD_TEXTS)
def test_a_bad_text_is_neither_topic_nor_pattern(text: object, word: str) -> None:
    for validate, error in ((validate_topic, InvalidTopic), (validate_pattern, InvalidPattern)):
        with pytest.raises(error, match=word) as caught:
            validate(text)
        message = str(caught.value)

        assert message.isprintable()
        assert len(message) < 400


@pytest.mark.parametrize("topic", ["*", ">", "a.*", "a.>", "a*", "a.b>c"])
def test_a_topic_with_a_wildcard_is_refused(topic: str) -> None:
    with pytest.raises(InvalidTopic, match="wildcard"):
        validate_topic(topic)


@pytest.mark.parametrize("pattern", ["a.>.b", ">.a", ">.>"])
def test_a_tail_wildcard_before_the_end_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPattern, match="before its end"):
        validate_pattern(pattern)


@pytest.mark.parametrize("pattern", ["**", "a*", "*a", ">x", "x>", "a.b*c", ">>", "a.*>"])
def test_a_wildcard_inside_a_token_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidPattern, match="inside the token"):
        validate_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "topic", "expected"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.Created", False),
        ("order", "order.created", False),
        ("order.created", "order", False),
        ("order.*", "order.created", True),
        ("order.*", "order", False),
        ("order.*", "order.created.now", False),
        ("*.created", "order.created", True),
        ("*", "order", True),
        ("*", "order.created", False),
        (">", "order", True),
        (">", "order.created.now", True),
        ("order.>", "order", False),
        ("order.>", "order.created", True),
        ("order.>", "order.created.now", True),
        ("order.>", "user.created", False),
        ("*.>", "order", False),
        ("*.>", "order.created", True),
        ("*.*.>", "order.created", False),
        ("a.*.c.>", "a.b.c.d.e", True),
        # As `$SYS` of NATS: what is reserved is matched by patterns that name it.
        (">", "system.webhooks.fuse.blown", False),
        ("*.>", "system.webhooks.fuse.blown", False),
        ("*.webhooks.fuse.blown", "system.webhooks.fuse.blown", False),
        ("*", "system", False),
        (">", "system", False),
        ("system", "system", True),
        ("system.>", "system", False),
        ("system.>", "system.webhooks.fuse.blown", True),
        ("system.*.*.blown", "system.webhooks.fuse.blown", True),
        ("system.*.system.>", "system.a.system.b", True),
        (">", "systems.a", True),
        ("*.system", "a.system", True),
    ],
)
def test_the_rules_of_nats_hold(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected
    assert (pattern in candidates(topic)) is expected


@pytest.mark.parametrize("tokens", range(1, MAX_TOKENS + 1))
def test_the_candidates_are_each_there_once_valid_and_matching(tokens: int) -> None:
    topic = ".".join(f"t{number}" for number in range(tokens))
    found = candidates(topic)
    assert len(found) == len(set(found)) == 2 ** (tokens + 1) - 1
    assert all(matches(validate_pattern(pattern), topic) for pattern in found)


@given(patterns, topics)
def test_a_pattern_matches_if_and_only_if_it_is_a_candidate(pattern: str, topic: str) -> None:
    assert validate_pattern(pattern)
    assert (pattern in candidates(topic)) == matches(pattern, topic)


@pytest.mark.parametrize("word", ["a", "é"])
def test_more_tokens_than_the_limit_are_refused(word: str) -> None:
    longest = ".".join([word] * MAX_TOKENS)
    assert validate_topic(longest) == validate_pattern(longest) == longest
    with pytest.raises(InvalidTopic, match="has 11 tokens; 10 are allowed"):
        validate_topic(f"{longest}.x")
    with pytest.raises(InvalidPattern, match="has 11 tokens; 10 are allowed"):
        validate_pattern(f"{longest}.>")


def test_an_error_names_the_pattern_and_its_place() -> None:
    with pytest.raises(ValidationError) as caught:
        validate_patterns(["order.*", "a..b", "c.>", "x>"])
    first, second = caught.value.messages
    assert first.startswith("Pattern 2: The topic pattern 'a..b' has an empty token")
    assert second.startswith("Pattern 4: The topic pattern 'x>' has a wildcard inside")
    with pytest.raises(ValidationError, match="At least one topic pattern") as caught:
        validate_patterns([])
    assert "[" not in caught.value.messages[0]


@given(st.text())
def test_a_valid_topic_is_a_valid_pattern_that_matches_itself(text: str) -> None:
    try:
        validate_topic(text)
    except InvalidTopic:
        return
    assert validate_pattern(text) in candidates(text)


@given(st.text(alphabet="ab.*> "))
def test_every_pattern_that_is_accepted_matches_some_topic(text: str) -> None:
    try:
        validate_pattern(text)
    except InvalidPattern:
        return
    topic = text.replace("*", "x").replace(">", "x")
    assert text in candidates(validate_topic(topic))
