"""What publishers and subscribers hand in: headers, payloads, topics, patterns, ids, the shell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError

from deliveries import EventConflict, publish, publish_many
from deliveries.body import InvalidEventId, InvalidPayload, PayloadTooLarge
from deliveries.models import Delivery, Event
from subscriptions.models import Subscription, create_subscription
from subscriptions.topics.rules import InvalidPattern, InvalidTopic, candidates, validate_pattern
from subscriptions.validators import RESERVED_HEADERS, validate_headers
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ordered")]

HEADERS: dict[str, Any] = {
    "crlf-in-value": {"X-A": "b\r\nX-Injected: 1"},
    "lf-in-value": {"X-A": "b\nX-Injected: 1"},
    "cr-in-value": {"X-A": "b\rX-Injected: 1"},
    "lf-at-the-end": {"X-A": "b\n"},
    "crlf-at-the-start": {"X-A": "\r\nb"},
    "folded-line": {"X-A": "b\r\n c"},
    "nul-in-value": {"X-A": "b\0c"},
    "escape-in-value": {"X-A": "\x1b[2J"},
    "delete-in-value": {"X-A": "a\x7f"},
    "unicode-line-break": {"X-A": "b\u2028X-Injected: 1"},
    "latin-1-line-break": {"X-A": "b\x85c"},
    "letter-that-ends-in-lf": {"X-A": "\u010a"},
    "lone-surrogate": {"X-A": "\udc0a"},
    "beyond-ascii": {"X-A": "grün"},
    "space-around-value": {"X-A": " b "},
    "endless-value": {"X-A": "b" * 8193},
    "crlf-in-name": {"X-A\r\nX-Injected": "1"},
    "colon-in-name": {"X-A: b": "c"},
    "space-in-name": {"X A": "b"},
    "space-after-name": {"Host ": "example.com"},
    "nul-in-name": {"X\0A": "b"},
    "empty-name": {"": "b"},
    "unicode-name": {"Ｈost": "example.com"},
    "kelvin-sign-in-name": {"\u212aeep-Alive": "1"},
    "pseudo-header": {":authority": "example.com"},
    "twice-in-another-case": {"X-A": "b", "x-a": "c"},
    "signature": {"webhook-signature": "v1,forged"},
    "signature-in-capitals": {"WEBHOOK-SIGNATURE": "v1,forged"},
    "signature-with-underscores": {"Webhook_Signature": "v1,forged"},
    "id": {"Webhook-Id": "other"},
    "timestamp": {"webhook-timestamp": "0"},
    "plain-signature": {"X-Webhook-Signature": "sha256=forged"},
    "plain-signature-with-underscores": {"X_Webhook_Signature": "sha256=forged"},
    "length-with-underscore": {"Content_Length": "0"},
    "fifty-one-of-them": {f"X-{n}": "a" for n in range(51)},
    "a-list": [["X-A", "b"]],
    "a-text": "X-A: b",
    "a-number-as-value": {"X-A": 1},
    "a-list-as-value": {"X-A": ["b", "c"]},
    "nothing-as-value": {"X-A": None},
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_a_header_that_would_change_the_request_is_refused(headers: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        create_subscription(
            name="x", url="https://example.com/", topic_patterns=["a"], headers=headers
        )
    assert set(raised.value.message_dict) == {"headers"}
    (message,) = raised.value.message_dict["headers"]
    assert message.isprintable()
    assert not Subscription.objects.exists()


@pytest.mark.parametrize("name", sorted(RESERVED_HEADERS))
def test_a_header_that_the_sender_sets_cannot_be_set(name: str) -> None:
    for spelling in (name, name.title(), name.upper(), name.replace("-", "_")):
        with pytest.raises(ValidationError, match="is set by the sender"):
            validate_headers({spelling: "x"})


def test_the_trap_works_an_ordinary_header_is_accepted() -> None:
    validate_headers({"Authorization": "Bearer x", "X-Team": "blue; a=b", "X-Empty": ""})


def nested(depth: int) -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(depth - 1):
        payload = {"a": payload}
    return payload


class Shout(str):
    """A text that lies about what it is."""

    def __str__(self) -> str:
        return "}{"

    __repr__ = __str__


PAYLOADS: dict[str, tuple[Any, str]] = {
    "nan": ({"a": math.nan}, "payload.a is nan"),
    "infinity": ({"a": [1, math.inf]}, "is inf"),
    "number-of-5000-digits": ({"a": 10**5000}, "too long to be written"),
    "depth-of-3000": (nested(3000), "nested more than 99 levels"),
    "depth-of-3000-in-lists": ({"a": json.loads("[" * 900 + "]" * 900)}, "nested more than 99"),
    "lone-surrogate": ({"a": "\ud83d"}, "lone surrogate"),
    "surrogate-pair-written-apart": ({"a": "\ud83d\ude00"}, "lone surrogate"),
    "lone-surrogate-as-key": ({"\udcff": 1}, "lone surrogate"),
    "number-as-key": ({"a": {1: "x", "1": "y"}}, "keys of a JSON object are strings"),
    "truth-as-key": ({True: 1, "true": 2}, "keys of a JSON object are strings"),
    "nothing-as-key": ({None: 1}, "keys of a JSON object are strings"),
    "bytes": ({"a": b"x"}, "is a bytes"),
    "set": ({"a": {1}}, "is a set"),
    "generator": ({"a": (n for n in "ab")}, "is a generator"),
    "complex": ({"a": 1j}, "is a complex"),
    "list-for-an-object": ([{}], "must be a dict"),
    "text-for-an-object": ('{"a": 1}', "must be a dict"),
    "nothing-for-an-object": (None, "must be a dict"),
}


@pytest.mark.parametrize(("payload", "reason"), PAYLOADS.values(), ids=PAYLOADS)
def test_a_payload_that_json_cannot_hold_is_refused_and_leaves_nothing(
    payload: Any, reason: str
) -> None:
    with pytest.raises(InvalidPayload, match=reason) as raised:
        publish("test.attack", payload)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400
    assert not Event.objects.exists()


EXACT: dict[str, Any] = {
    "two-to-the-5000": 2**5000,
    "beyond-double": 2**63 + 1,
    "smallest-double": 5e-324,
    "negative-zero": -0.0,
    "nul": "a\0b",
    "line-separators": "\u2028\u2029",
    "end-of-script": "</script><script>alert(1)</script>",
    "escape": "\x1b[2J\x7f",
    "bidi": "\u202egnp.exe",
    "noncharacter": "\ufffe\uffff",
    "beyond-the-first-plane": "😀",
    "quotes-and-backslashes": "\\\"'\\u0000",
    "key-of-prototypes": {"__proto__": {"admin": True}, "constructor": 1},
    "empty-key": {"": {"": ""}},
    "envelope-within": {"v": 1, "id": "forged", "payload": {}},
    "depth-of-98": nested(97),
    "text-that-lies": Shout("calm"),
}


@pytest.mark.parametrize("value", EXACT.values(), ids=EXACT)
def test_an_odd_payload_that_json_can_hold_arrives_exactly(value: Any) -> None:
    event = publish("test.attack", {"a": value})
    stored = bytes(Event.objects.get().body)
    assert stored == event.body
    assert not any(byte < 0x20 for byte in stored), "no raw control character in the body"
    found = Event.objects.get().payload["a"]
    assert found == value
    assert math.copysign(1, found) == math.copysign(1, value) if value == 0.0 else True


def test_a_body_of_the_limit_is_accepted_and_one_byte_more_is_not(
    configure: Callable[..., None],
) -> None:
    configure(max_payload_bytes=1000)
    empty = len(bytes(publish("test.attack", {"a": ""}, event_id="a" * 36).body))
    fits = publish("test.attack", {"a": "x" * (1000 - empty)}, event_id="b" * 36)
    assert len(fits.body) == 1000
    for text in ("x" * (1001 - empty), "ü" * ((1000 - empty) // 2) + "xx"):
        with pytest.raises(PayloadTooLarge, match="1,000 are allowed"):
            publish("test.attack", {"a": text}, event_id="c" * 36)
    assert Event.objects.count() == 2


DATA: dict[str, tuple[str, str]] = {
    "duplicate-key": ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
    "duplicate-key-deep": ('{"a": [{"b": {"c": 1, "c": 1}}]}', "the key 'c' is there twice"),
    "duplicate-key-escaped": ('{"a": 1, "\\u0061": 2}', "the key 'a' is there twice"),
    "nan": ('{"a": NaN}', "payload.a is nan"),
    "minus-infinity": ('{"a": -Infinity}', "payload.a is -inf"),
    "exponent-without-end": ('{"a": 1e999}', "payload.a is inf"),
    "number-of-5000-digits": ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    "depth-of-3000": ('{"a":' * 3000 + "1" + "}" * 3000, "."),
    "depth-of-200000": ("[" * 200_000, "is not JSON"),
    "lone-surrogate": ('{"a": "\\ud800"}', "lone surrogate"),
    "undecodable-argument": ('{"a": "\udcff"}', "lone surrogate"),
    "raw-nul": ('{"a": "\0"}', "is not JSON"),
    "byte-order-mark": ('\ufeff{"a": 1}', "is not JSON"),
    "two-documents": ('{"a": 1} {"a": 2}', "is not JSON"),
    "trailing-comma": ('{"a": 1,}', "is not JSON"),
    "comment": ('{"a": 1 /* b */}', "is not JSON"),
    "single-quotes": ("{'a': 1}", "is not JSON"),
    "list": ("[1]", "must be a dict"),
    "empty": ("", "is not JSON"),
    "file-that-is-not-there": ("@/nowhere/payload.json", "cannot be read"),
    "file-that-is-a-directory": ("@/", "cannot be read"),
    "file-that-is-not-text": ("@/proc/self/exe", "not UTF-8"),
}


@pytest.mark.parametrize(("data", "reason"), DATA.values(), ids=DATA)
def test_data_that_two_parsers_could_read_differently_is_refused(data: str, reason: str) -> None:
    message = refusal("publish_event", "test.attack", "--data", data, code=2)
    assert reason in message
    assert len(message) < 500
    assert not Event.objects.exists()


UNDECODABLE = "\udcff"  # what Python makes of an argument that is not UTF-8


@pytest.mark.parametrize("text", [UNDECODABLE, "a\0b"], ids=["not-utf-8", "nul"])
@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("pause", "{}"), id="pause"),
        pytest.param(("resume", "{}"), id="resume"),
        pytest.param(("reset_circuit", "{}"), id="reset_circuit"),
        pytest.param(("rotate_secret", "{}"), id="rotate_secret"),
        pytest.param(("send_test", "{}"), id="send_test"),
        pytest.param(("replay", "--subscription", "{}"), id="replay"),
        pytest.param(("add_subscription", "{}", "https://a.example/", "--pattern", "a"), id="add"),
        pytest.param(("add_subscription", "n", "https://{}.example/", "--pattern", "a"), id="url"),
        pytest.param(("add_subscription", "n", "https://a.example/", "--pattern", "{}"), id="p"),
    ],
)  # fmt: skip
def test_an_argument_that_is_no_text_is_a_sentence_and_no_traceback(
    words: tuple[str, ...], text: str
) -> None:
    code = 2 if words[0] == "add_subscription" else 1  # a name that is none, or one of nobody
    message = refusal(*(word.replace("{}", text) for word in words), code=code)
    assert message.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", [UNDECODABLE, "a\0b"], ids=["not-utf-8", "nul"])
@pytest.mark.parametrize("option", ["--id", "--type"])
def test_an_event_with_an_argument_that_is_no_text_is_refused(option: str, text: str) -> None:
    message = refusal("publish_event", "test.attack", "--data", "{}", option, text, code=2)
    assert message.isprintable()


TOPICS = {
    "empty": "",
    "dot": ".",
    "dots-around": ".a.",
    "empty-token": "a..b",
    "wildcard": "a.*",
    "tail-wildcard": ">",
    "wildcard-in-a-token": "a*b",
    "space": "a b",
    "tab": "a\tb",
    "line-break": "a\r\nX-Injected: 1",
    "line-break-at-the-end": "a\n",
    "nul": "a\0b",
    "no-break-space": "a\xa0b",
    "zero-width-space": "a\u200bb",
    "bidi": "a\u202eb",
    "lone-surrogate": "a\ud800",
    "noncharacter": "a\uffff",
    "private-use": "a\ue000",
    "256-characters": "a" * 256,
    "bytes": b"a.b",
    "number": 1,
    "nothing": None,
}


@pytest.mark.parametrize("topic", TOPICS.values(), ids=TOPICS)
def test_a_topic_that_is_none_is_refused_and_leaves_nothing(topic: Any) -> None:
    make_subscription(topic_patterns=[">"])
    with pytest.raises(InvalidTopic) as raised:
        publish(topic, {})
    assert str(raised.value).isprintable()
    assert not Event.objects.exists()


PATTERNS: dict[str, Any] = {
    "empty": "",
    "tail-in-the-middle": "a.>.b",
    "two-stars": "**",
    "star-in-a-token": "a.b*",
    "regular-expression": "^(a+)+$ ",
    "line-break": "a\n",
    "nul": "a\0",
    "lone-surrogate": "\udfff",
    "256-characters": "*." * 128 + "a",
    "number": 1,
    "nothing": None,
    "list": ["a"],
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_that_is_none_is_refused(pattern: Any) -> None:
    with pytest.raises(InvalidPattern):
        validate_pattern(pattern)
    with pytest.raises(ValidationError) as raised:
        create_subscription(name="x", url="https://example.com/", topic_patterns=["a.ok", pattern])
    assert "topic_patterns" in raised.value.message_dict


@pytest.mark.parametrize(
    "patterns", [[], "a", {"a": 1}, ["a"] * 1001], ids=["none", "text", "object", "too-many"]
)
def test_patterns_that_are_no_list_of_them_are_refused(patterns: Any) -> None:
    subscription = Subscription(name="x", url="https://example.com/", topic_patterns=patterns)
    with pytest.raises(ValidationError):
        subscription.full_clean()


def test_patterns_made_to_explode_cost_no_more_than_their_number() -> None:
    """Every mixture of `*` and a word, in one subscription: one look-up each, one delivery."""
    longest = ".".join("a" * 10)
    mixtures = candidates(longest)
    assert len(mixtures) == 2047
    explosive = make_subscription(topic_patterns=["b"])
    Subscription.objects.filter(pk=explosive.pk).update(topic_patterns=mixtures)
    began = time.process_time()
    for topic in (longest, ".".join("b" * 10), "a.b"):
        publish(topic, {})
    assert time.process_time() - began < 2
    assert Delivery.objects.filter(subscription=explosive).count() == 3


def test_a_topic_of_quotes_is_data_and_no_sql() -> None:
    subscription = make_subscription(topic_patterns=["test.>"])
    topic = 'test.\');TRUNCATE"deliveries_event";--'
    event = publish(topic, {}, event_type="'; DROP TABLE deliveries_event; --")
    assert Event.objects.get(pk=event.pk).topic == topic
    assert Delivery.objects.filter(subscription=subscription).count() == 1


IDS = {
    "empty": "",
    "space": "a b",
    "line-break": "a\r\nX-Injected: 1",
    "line-break-at-the-end": "a\n",
    "comma": "a,b",
    "nul": "a\0",
    "beyond-ascii": "é",
    "digits-of-another-script": "١٢٣",
    "lone-surrogate": "\ud800",
    "path": "../../etc/passwd",
    "256-characters": "a" * 256,
    "number": 1,
    "bytes": b"a",
}


@pytest.mark.parametrize("event_id", IDS.values(), ids=IDS)
def test_an_event_id_that_would_not_fit_a_header_is_refused(event_id: Any) -> None:
    with pytest.raises(InvalidEventId) as raised:
        publish("test.attack", {}, event_id=event_id)
    assert str(raised.value).isprintable()
    assert not Event.objects.exists()


# A second event with the id of the first, which was: topic a, type t, payload {"n": 1}.
COLLISIONS: dict[str, dict[str, Any]] = {
    "other-topic": {"topic": "b"},
    "other-type": {"event_type": "u"},
    "no-type": {"event_type": ""},
    "other-value": {"payload": {"n": 2}},
    "float-for-whole": {"payload": {"n": 1.0}},
    "truth-for-one": {"payload": {"n": True}},
    "text-for-number": {"payload": {"n": "1"}},
    "one-key-more": {"payload": {"n": 1, "m": None}},
    "nothing": {"payload": {}},
    "topic-in-another-case": {"topic": "A"},
}
FIRST: dict[str, Any] = {"topic": "a", "event_type": "t", "payload": {"n": 1}, "event_id": "one"}


@pytest.mark.parametrize("change", COLLISIONS.values(), ids=COLLISIONS)
def test_an_event_id_never_means_two_events(change: dict[str, Any]) -> None:
    first = publish(**FIRST)
    with pytest.raises(EventConflict, match="'one' is taken"):
        publish(**FIRST | change)
    with pytest.raises(EventConflict):
        publish_many([{"topic": "x", "payload": {}}, {**FIRST, **change}])  # type: ignore[list-item]
    assert bytes(Event.objects.get().body) == first.body


@pytest.mark.parametrize("event_id", ["One", "ONE", "one.", "one:", "0ne"])
def test_an_event_id_that_looks_alike_is_another_event(event_id: str) -> None:
    publish(**FIRST)
    assert publish(**FIRST | {"event_id": event_id}).pk == event_id
    assert Event.objects.count() == 2


def test_texts_that_look_alike_are_two_contents() -> None:
    """Composed and decomposed: what is signed is bytes, so nothing is normalised."""
    publish("a", {"name": "é"}, event_id="one")
    with pytest.raises(EventConflict):
        publish("a", {"name": "e\u0301"}, event_id="one")


def test_a_command_that_repeats_an_id_with_another_content_publishes_nothing() -> None:
    run_json("publish_event", "a", "--data", '{"n": 1}', "--id", "one")
    assert "taken" in refusal("publish_event", "a", "--data", '{"n": 2}', "--id", "one")
    assert "published before" in run("publish_event", "a", "--data", '{"n": 1}', "--id", "one")
    assert Event.objects.count() == 1
