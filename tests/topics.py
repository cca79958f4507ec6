"""The rule of topics and patterns as a person would check it, to hold `candidates` against."""

from __future__ import annotations

from hypothesis import strategies as st


def matches(pattern: str, topic: str) -> bool:
    """Whether a valid pattern matches a valid topic."""
    wanted, tokens = pattern.split("."), topic.split(".")
    if tokens[0] == "system" and wanted[0] != "system":
        return False
    if wanted[-1] == ">":
        wanted.pop()
        if len(tokens) <= len(wanted):
            return False
        tokens = tokens[: len(wanted)]
    return len(wanted) == len(tokens) and all(
        want in ("*", token) for want, token in zip(wanted, tokens, strict=True)
    )


# Few words, so that what is generated often matches.
words = st.sampled_from(["a", "b", "c", "é"])
topics = st.lists(words, min_size=1, max_size=5).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, *tail]),
    st.lists(st.one_of(words, st.just("*")), max_size=5),
    st.sampled_from([[">"], ["*"], ["a"], ["b"]]),
)
