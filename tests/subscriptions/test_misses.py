"""Why a pattern does not match."""

from __future__ import annotations

import pytest
from hypothesis import given

from subscriptions.topics.misses import miss
from tests import topics as rule


@given(rule.patterns, rule.topics)
def test_what_is_no_miss_matches(pattern: str, topic: str) -> None:
    assert (miss(pattern, topic) is None) == rule.matches(pattern, topic)


@pytest.mark.parametrize(
    ("pattern", "topic", "why"),
    [
        ("order.created", "order.paid", "token 2 is 'paid', and the pattern has 'created' there"),
        ("Order.created", "order.created", "'Order' is not 'order': case counts"),
        (
            "order.*",
            "order.created.eu",
            "the pattern has 2 tokens, and the topic has 3: '*' stands for exactly one; "
            "'>' would match the rest",
        ),
        (
            "order.>",
            "order",
            "the pattern asks for 2 tokens or more, and the topic has 1: "
            "'>' stands for at least one",
        ),
        ("order.created", "order", "the pattern has 2 tokens, and the topic has 1"),
        (
            "a.b.c",
            "x.b.y",
            "token 1 is 'x', and the pattern has 'a' there; 2 tokens differ in all",
        ),
    ],
)
def test_a_miss_is_told_in_words(pattern: str, topic: str, why: str) -> None:
    found = miss(pattern, topic)
    assert found is not None
    assert found.why == why


def test_what_looks_alike_is_nearer() -> None:
    topic = "order.created"
    missed = ["Order.created", "order.creatd", "order.*.eu", "invoice.paid", "a.b.c"]
    distances = [found.distance for pattern in missed if (found := miss(pattern, topic))]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(missed)
