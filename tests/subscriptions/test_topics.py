from __future__ import annotations

import sys
import uuid
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subscriptions.topics import (
    InvalidPattern,
    InvalidTopic,
    PatternTrie,
    matches,
    validate_pattern,
    validate_topic,
)

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
    ],
)
def test_the_rules_of_nats_hold(pattern: str, topic: str, expected: bool) -> None:
    assert matches(pattern, topic) is expected
    trie: PatternTrie[int] = PatternTrie()
    trie.add(pattern, 1)
    assert trie.match(topic) == ([1] if expected else [])


def test_the_text_of_a_slot_is_not_mistaken_for_a_token() -> None:
    trie: PatternTrie[str] = PatternTrie()
    for pattern in ("a.>", "a", "a.b", "*", "*.>", ">", "a.*.b"):
        trie.add(pattern, pattern)
    assert set(trie.match("a.a")) == {"a.>", "*.>", ">"}
    assert set(trie.match("a")) == {"a", "*", ">"}


def test_each_key_is_matched_once_whatever_its_patterns() -> None:
    trie: PatternTrie[int] = PatternTrie()
    for pattern in ("a.b", "a.*", "*.b", "*.*", "a.>", ">", "a.b"):
        trie.add(pattern, 1)
        trie.add(pattern, 2)
    assert sorted(trie.match("a.b")) == [1, 2]
    assert len(trie) == 2


def test_a_refused_pattern_changes_nothing() -> None:
    trie: PatternTrie[int] = PatternTrie()
    with pytest.raises(InvalidPattern):
        trie.add("a.>.b", 1)
    assert len(trie) == 0
    assert 1 not in trie


def test_discarding_an_unknown_key_is_no_error() -> None:
    PatternTrie[int]().discard(1)


def test_a_matched_list_is_the_callers_own() -> None:
    trie: PatternTrie[int] = PatternTrie()
    trie.add("a", 1)
    trie.add("b", 1)
    trie.add("b", 2)
    trie.match("a").clear()
    trie.match("b").clear()
    assert trie.match("a") == [1]
    assert sorted(trie.match("b")) == [1, 2]


def test_the_deepest_patterns_need_no_recursion() -> None:
    trie: PatternTrie[int] = PatternTrie()
    deepest = ".".join("a" * 128)
    trie.add(".".join("*" * 128), 1)
    trie.add(".".join("*" * 127) + ".>", 2)
    trie.add(deepest, 3)
    limit = sys.getrecursionlimit()
    depth = len(_frames())
    sys.setrecursionlimit(depth + 20)
    try:
        found = trie.match(deepest)
        trie.discard(1)
    finally:
        sys.setrecursionlimit(limit)
    assert sorted(found) == [1, 2, 3]


def _frames() -> list[object]:
    frames: list[object] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def test_a_match_visits_nodes_that_agree_and_no_others() -> None:
    """The cost is counted in look-ups, so that it does not hang on the speed of the machine."""

    class Counting(dict):  # type: ignore[type-arg]
        seen = 0

        def __contains__(self, key: object) -> bool:
            Counting.seen += 1
            return super().__contains__(key)

    def cost(subscriptions: int) -> int:
        trie: PatternTrie[int] = PatternTrie()
        trie._root = Counting()
        trie._root["tenant"] = Counting()
        for number in range(subscriptions):
            trie.add(f"tenant.{number}.order.created", number)
            trie.add(f"other{number}.>", number)
        Counting.seen = 0
        assert trie.match("tenant.7.order.created") == [7]
        return Counting.seen

    assert cost(5000) == cost(50) > 0


tokens = st.sampled_from(["a", "b", "c", "é"])
topics = st.lists(tokens, min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(st.one_of(tokens, st.just("*")), max_size=5),
    st.sampled_from([[">"], ["*"], ["a"], ["b"]]),
)
keys = st.integers(0, 8).map(lambda number: uuid.UUID(int=number))
steps = st.lists(st.tuples(st.booleans(), patterns, keys), max_size=40)


@given(steps, st.lists(topics, min_size=1, max_size=5))
def test_the_trie_agrees_with_the_rule(
    changes: list[tuple[bool, str, uuid.UUID]], asked: list[str]
) -> None:
    trie: PatternTrie[uuid.UUID] = PatternTrie()
    expected: dict[uuid.UUID, set[str]] = {}
    for adding, pattern, key in changes:
        assert validate_pattern(pattern)
        if adding:
            trie.add(pattern, key)
            expected.setdefault(key, set()).add(pattern)
        else:
            trie.discard(key)
            expected.pop(key, None)
    assert len(trie) == len(expected)
    for topic in asked:
        found = trie.match(topic)
        assert len(found) == len(set(found))
        assert set(found) == {
            key for key, mine in expected.items() if any(matches(one, topic) for one in mine)
        }
    for key in expected:
        trie.discard(key)
    assert trie._root == {}, "an emptied trie keeps no node"


@given(st.text())
def test_a_valid_topic_is_a_valid_pattern_that_matches_itself(text: str) -> None:
    try:
        validate_topic(text)
    except InvalidTopic:
        return
    validate_pattern(text)
    assert matches(text, text)


@given(st.text(alphabet="ab.*> "))
def test_every_pattern_that_is_accepted_matches_some_topic(text: str) -> None:
    try:
        validate_pattern(text)
    except InvalidPattern:
        return
    topic = text.replace("*", "x").replace(">", "x.y")
    assert matches(text, validate_topic(topic))
