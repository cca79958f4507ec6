"""The pure rules, against anything: matching, backoff, `Retry-After`, what is signed."""

from __future__ import annotations

import email.utils
import json
import re
import uuid
from datetime import UTC, datetime, timedelta

from hypothesis import assume, example, given
from hypothesis import strategies as st

from deliveries.judging.policy import (
    MAX_RETRY_AFTER,
    MIN_RETRY_AFTER,
    OWN_FAULTS,
    Outcome,
    Schedule,
    Verdict,
    decide,
    judge,
    parse_retry_after,
)
from deliveries.sending import signing
from subscriptions.secrets.signing_secrets import generate
from subscriptions.topics.rules import candidates
from tests.security.properties import FIXED

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

# Matching.

words = st.sampled_from(["a", "b", "aa", "é", "a-b", "A", "$1", "\\", "(", "+", "[a]"])
topics = st.lists(words, min_size=1, max_size=6).map(".".join)
patterns = st.builds(
    lambda head, tail: ".".join([*head, tail]),
    st.lists(st.one_of(words, st.just("*")), max_size=5),
    st.one_of(words, st.sampled_from(["*", ">"])),
)


def oracle(pattern: str, topic: str) -> bool:
    """As a person would say it, without a loop: by a regular expression."""
    token = r"[^.]+"
    parts = {"*": token, ">": rf"{token}(\.{token})*"}
    wanted = r"\.".join(parts.get(part) or re.escape(part) for part in pattern.split("."))
    return re.fullmatch(wanted, topic, re.DOTALL) is not None


@FIXED
@given(st.lists(patterns, min_size=1, max_size=12), st.lists(topics, min_size=1, max_size=6))
def test_matching_agrees_with_a_slow_oracle(wanted: list[str], asked: list[str]) -> None:
    for topic in asked:
        expected = {pattern for pattern in wanted if oracle(pattern, topic)}
        assert set(wanted) & set(candidates(topic)) == expected


@FIXED
@given(patterns)
def test_a_pattern_matches_a_topic_that_was_made_from_it(pattern: str) -> None:
    """The oracle above is not empty: every pattern has topics, and longer ones only with `>`."""
    topic = pattern.replace("*", "x").replace(">", "x.y.z")
    assert oracle(pattern, topic)
    assert pattern in candidates(topic)
    assert (pattern in candidates(f"{topic}.more")) == pattern.endswith(">")


# Backoff.

seconds = st.floats(0, 30 * 86400)
schedules = st.builds(
    Schedule,
    st.lists(seconds, max_size=4).map(tuple),
    st.lists(seconds, max_size=9).map(tuple),
    st.floats(0, 0.99),
)
spreads = st.floats(0, 1, exclude_max=True)
statuses = st.one_of(st.none(), st.integers(100, 999))
errors = st.sampled_from(["timeout", "dns", "refused", "tls", "other", *sorted(OWN_FAULTS)])
delays_asked = st.one_of(st.none(), st.floats(MIN_RETRY_AFTER, MAX_RETRY_AFTER))


@FIXED
@given(schedules, st.integers(0, 20), spreads)
def test_a_delay_is_its_entry_of_the_schedule_give_or_take_the_jitter(
    schedule: Schedule, used: int, spread: float
) -> None:
    planned = schedule.quick + schedule.slow
    delay = schedule.delay(used, spread)
    if used >= len(planned):
        assert delay is None
        return
    assert delay is not None
    least, most = planned[used] * (1 - schedule.jitter), planned[used] * (1 + schedule.jitter)
    assert least - 1e-6 <= delay <= most + 1e-6


@FIXED
@given(schedules, st.lists(st.tuples(statuses, errors, delays_asked, spreads), max_size=60))
def test_whatever_is_answered_a_delivery_ends_and_is_never_due_in_the_past(
    schedule: Schedule, answers: list[tuple[int | None, str, float | None, float]]
) -> None:
    used = counted = 0
    for status, error, asked, spread in answers:
        outcome = judge(status, error, asked)
        following = decide(outcome, used, schedule, spread)
        assert following.status in ("succeeded", "pending", "failed")
        if following.status != "pending":
            assert (following.status == "succeeded") == (status is not None and 200 <= status < 300)
            return
        longest = max((*schedule.quick, *schedule.slow, 15.0)) * 2
        assert 0 <= following.delay <= max(longest, MAX_RETRY_AFTER)
        if outcome.retry_after is not None:
            assert following.delay >= outcome.retry_after
        assert following.retries_used == used + (0 if outcome.own_fault else 1)
        assert following.result is None or not outcome.excused
        counted += following.result is False
        used = following.retries_used
        assert used <= len(schedule.quick) + len(schedule.slow)
    assert counted <= max(0, used - len(schedule.quick))


@FIXED
@given(schedules, st.integers(0, 20), spreads, delays_asked)
def test_our_own_faults_cost_a_receiver_nothing(
    schedule: Schedule, used: int, spread: float, asked: float | None
) -> None:
    for error in OWN_FAULTS:
        following = decide(judge(None, error, asked), used, schedule, spread)
        assert (following.status, following.result) == ("pending", None)
        assert following.retries_used == used
    throttled = decide(judge(429, "", asked), used, schedule, spread)
    assert throttled.result is None


# `Retry-After`.

stamps = st.datetimes(timezones=st.just(UTC))
dates = st.one_of(
    stamps.map(email.utils.format_datetime),
    stamps.map(lambda one: f"{one:%a %b %d %H:%M:%S} {one.year:04}"),
    st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Mon", "Fri", "", "\xb2"]),
        st.integers(-1, 99999), st.sampled_from(["Jan", "Feb", "Foo", ""]),
        st.integers(-1, 10**12), st.integers(-1, 99), st.integers(-1, 99), st.integers(-1, 99),
        st.sampled_from(["GMT", "-0000", "+9999", "-99999999999999", "EST", "", "\u0663"]),
    ),
)  # fmt: skip
numbers = st.one_of(
    st.integers(-(10**30), 10**30).map(str),
    st.floats().map(str),
    st.text(alphabet="0123456789 eE+-._\u0663\xb2,", max_size=30),
    st.integers(1, 6000).map(lambda count: "9" * count),
)


@FIXED
@given(st.one_of(st.text(), dates, numbers))
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("0")
@example("")
def test_any_retry_after_is_nothing_or_between_a_second_and_a_day(text: str) -> None:
    found = parse_retry_after(text, NOW)
    assert found is None or MIN_RETRY_AFTER <= found <= MAX_RETRY_AFTER


@FIXED
@given(st.integers(0, 10**9), st.sampled_from(["", " ", "\t"]))
def test_seconds_are_taken_as_they_are_within_the_limits(number: int, blank: str) -> None:
    expected = min(MAX_RETRY_AFTER, max(MIN_RETRY_AFTER, number))
    assert parse_retry_after(f"{blank}{number}{blank}", NOW) == expected


@FIXED
@given(st.integers(-(10**7), 10**7))
def test_a_date_is_the_seconds_until_then_within_the_limits(apart: int) -> None:
    text = email.utils.format_datetime(NOW + timedelta(seconds=apart), usegmt=True)
    expected = min(MAX_RETRY_AFTER, max(MIN_RETRY_AFTER, apart))
    assert parse_retry_after(text, NOW) == expected


# What is signed.

SECRET = generate()
ids = st.text(alphabet="ab1.:-_", min_size=1, max_size=20)


@FIXED
@given(ids, st.integers(10**9, 2 * 10**9), st.dictionaries(st.text(max_size=3), st.integers()))
@example("a.1700000000", 1_700_000_001, {"a": 1})
@example("a.1700000000.", 1_700_000_001, {})
@example("1.2.3", 1_700_000_001, {"": 0})
def test_no_part_of_a_signed_request_can_be_moved_into_another(
    event_id: str, timestamp: int, payload: dict[str, int]
) -> None:
    """An id may hold dots, and dots divide what is signed. Cut anywhere else, the same text is
    never an event: its body would begin with the rest of the id, and is not JSON."""
    body = json.dumps(payload).encode()
    headers = signing.headers(
        body, event_id=event_id, topic="a", timestamp=timestamp, secrets=[SECRET], prefix="X"
    )
    signature = headers["webhook-signature"]
    parts = f"{event_id}.{timestamp}.".encode() + body
    pieces = parts.split(b".")
    genuine = 0
    for first in range(1, len(pieces) - 1):
        other = {
            "webhook-id": b".".join(pieces[:first]).decode(),
            "webhook-timestamp": pieces[first].decode(errors="replace"),
            "webhook-signature": signature,
        }
        moved = b".".join(pieces[first + 1 :])
        try:
            stamp = int(other["webhook-timestamp"])
            signing.verify(moved, other, [SECRET], now=stamp)
            found = json.loads(moved)
        except (signing.BadSignature, ValueError):
            continue
        assert (other["webhook-id"], stamp, found) == (event_id, timestamp, payload)
        genuine += 1
    assert genuine == 1


@FIXED
@given(st.uuids(), st.binary(max_size=50), st.integers(0, 400), st.integers(0, 7))
def test_a_request_that_was_changed_by_one_bit_is_refused(
    event_id: uuid.UUID, body: bytes, place: int, bit: int
) -> None:
    assume(body)
    headers = signing.headers(
        body, event_id=str(event_id), topic="a", timestamp=1, secrets=[SECRET], prefix="X"
    )
    signing.verify(body, headers, [SECRET], now=1)
    changed = bytearray(body)
    changed[place % len(body)] ^= 1 << bit
    for forged, sent in (
        (bytes(changed), headers),
        (body, {**headers, "webhook-id": f"{event_id}x"}),
        (body, {**headers, "webhook-timestamp": "2"}),
        (body, {**headers, "webhook-signature": ""}),
        (body, {**headers, "webhook-signature": "v1,"}),
        (body, {**headers, "webhook-signature": headers["webhook-signature"].lower()}),
    ):
        try:
            signing.verify(forged, sent, [SECRET], now=1)
        except signing.BadSignature:
            continue
        assert sent["webhook-signature"] == headers["webhook-signature"] != "", "base64 in capitals"
        assert forged == body
        assert sent == headers


def test_the_outcomes_that_excuse_a_receiver_are_these() -> None:
    """Named here as well: a status added to them would be one that nobody's circuit notices."""
    excused = {
        status
        for status in range(100, 1000)
        for asked in (None, 5.0)
        if judge(status, "", asked).excused
    }
    assert excused == {429, 503}
    assert judge(503, "", None) == Outcome(Verdict.RETRY)
