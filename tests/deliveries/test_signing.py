from __future__ import annotations

import base64
import hashlib
import hmac
import time
from urllib.parse import unquote

import pytest
import standardwebhooks
import svix.webhooks

from deliveries.body import InvalidEventId
from deliveries.sending.signing import BadSignature, headers, verify, verify_plain
from subscriptions.secrets.signing_secrets import generate

BODY = '{"id":"evt_1","payload":{"name":"Zoë"},"v":1}'.encode()
OLD, NEW = generate(), generate()
NOW = 1_700_000_000


def sign(*secrets: str, body: bytes = BODY, timestamp: int = NOW, **fields: str) -> dict[str, str]:
    arguments = {"event_id": "evt_1", "topic": "order.created", "prefix": "X-Webhook"} | fields
    return headers(body, timestamp=timestamp, secrets=secrets, **arguments)


def test_the_headers_are_these() -> None:
    key = base64.b64decode(NEW.removeprefix("whsec_"))
    signed = b"evt_1.1700000000." + BODY
    standard = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    plain = hmac.new(NEW.encode(), BODY, hashlib.sha256).hexdigest()
    assert sign(NEW) == {
        "webhook-id": "evt_1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{standard}",
        "X-Webhook-Signature": f"sha256={plain}",
        "X-Webhook-Event-Id": "evt_1",
        "X-Webhook-Event-Topic": "order.created",
        "X-Webhook-Timestamp": "1700000000",
    }


def test_the_example_of_the_standard_is_reproduced() -> None:
    # From the test vectors of the Standard Webhooks libraries.
    signed = headers(
        b'{"test": 2432232314}',
        event_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
        topic="t",
        timestamp=1614265330,
        secrets=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
        prefix="X",
    )
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.webhooks.Webhook])
@pytest.mark.parametrize("known", [OLD, NEW], ids=["knows the old", "knows the new"])
def test_during_a_rotation_receivers_with_either_secret_verify(library: type, known: str) -> None:
    signed = sign(NEW, OLD, timestamp=int(time.time()))
    library(known).verify(BODY, signed)


@pytest.mark.parametrize(
    ("library", "error"),
    [
        (standardwebhooks.Webhook, standardwebhooks.WebhookVerificationError),
        (svix.webhooks.Webhook, svix.webhooks.WebhookVerificationError),
    ],
)
def test_a_receiver_with_another_secret_does_not_verify(
    library: type, error: type[Exception]
) -> None:
    signed = sign(NEW, OLD, timestamp=int(time.time()))
    with pytest.raises(error):
        library(generate()).verify(BODY, signed)


def test_signatures_come_newest_first() -> None:
    newest, oldest = sign(NEW, OLD)["webhook-signature"].split(" ")
    assert newest == sign(NEW)["webhook-signature"]
    assert oldest == sign(OLD)["webhook-signature"]


def test_the_plain_form_is_made_with_the_oldest_live_secret() -> None:
    signed = sign(NEW, OLD)
    assert signed["X-Webhook-Signature"] == sign(OLD)["X-Webhook-Signature"]
    verify_plain(BODY, signed, [OLD], prefix="X-Webhook")
    with pytest.raises(BadSignature, match="does not fit"):
        verify_plain(BODY, signed, [NEW], prefix="X-Webhook")
    verify_plain(BODY, sign(NEW), [NEW], prefix="X-Webhook")


def test_the_prefix_names_the_plain_headers() -> None:
    signed = sign(NEW, prefix="X-Shop")
    assert {name for name in signed if name.startswith("X-")} == {
        "X-Shop-Signature",
        "X-Shop-Event-Id",
        "X-Shop-Event-Topic",
        "X-Shop-Timestamp",
    }


@pytest.mark.parametrize(
    ("topic", "shown"),
    [
        ("order.created", "order.created"),
        ("größe.日本", "gr%C3%B6%C3%9Fe.%E6%97%A5%E6%9C%AC"),
        ("discount.50%", "discount.50%25"),
        ("a:b/c.$x?&=,;\"'", "a:b/c.$x?&=,;\"'"),
        ("a\r\nX-Evil: 1", "a%0D%0AX-Evil:%201"),
    ],
)
def test_the_topic_header_is_ascii_and_can_be_read_back(topic: str, shown: str) -> None:
    value = sign(NEW, topic=topic)["X-Webhook-Event-Topic"]
    assert value == shown
    assert unquote(value) == topic


def test_without_a_live_secret_nothing_is_signed() -> None:
    with pytest.raises(ValueError, match="no live secret"):
        sign()


def test_an_id_that_would_break_a_header_is_refused() -> None:
    with pytest.raises(InvalidEventId):
        sign(NEW, event_id="evt_1\r\nX-Evil: 1")


def test_an_empty_body_is_signed_too() -> None:
    verify(b"", sign(NEW, body=b""), [NEW], now=NOW)


@pytest.mark.parametrize("known", [[OLD], [NEW], [generate(), OLD], [NEW, OLD]])
def test_verify_takes_any_secret_that_fits(known: list[str]) -> None:
    verify(BODY, sign(NEW, OLD), known, now=NOW)


@pytest.mark.parametrize("apart", [-300, 0, 300])
def test_verify_tolerates_five_minutes_either_way(apart: int) -> None:
    verify(BODY, sign(NEW), [NEW], now=NOW + apart)


def test_verify_ignores_the_case_of_header_names() -> None:
    signed = {name.title(): value for name, value in sign(NEW).items()}
    verify(BODY, signed, [NEW], now=NOW)
    verify_plain(BODY, signed, [NEW], prefix="x-webhook")


def test_verify_skips_signatures_of_other_versions() -> None:
    signed = sign(NEW)
    signed["webhook-signature"] = f"v1a,AAAA v2,xyz {signed['webhook-signature']} v1,"
    verify(BODY, signed, [NEW], now=NOW)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"webhook-id": ""}, "webhook-id is missing"),
        ({"webhook-timestamp": ""}, "webhook-timestamp is missing"),
        ({"webhook-signature": ""}, "webhook-signature is missing"),
        ({"webhook-timestamp": "soon"}, "whole Unix seconds"),
        ({"webhook-timestamp": "1e9"}, "whole Unix seconds"),
        ({"webhook-timestamp": "-1700000000"}, "whole Unix seconds"),
        ({"webhook-timestamp": "٣"}, "whole Unix seconds"),
        ({"webhook-timestamp": "9" * 5000}, "whole Unix seconds"),
        ({"webhook-timestamp": str(NOW - 301)}, "301 s old; 300 s"),
        ({"webhook-timestamp": str(NOW + 301)}, "301 s ahead"),
        ({"webhook-timestamp": str(NOW + 1)}, "fits"),
        ({"webhook-id": "evt_2"}, "fits"),
        ({"webhook-id": "\udc80"}, "fits"),
        ({"webhook-signature": "v2,AAAA"}, "holds no v1 signature"),
        ({"webhook-signature": "v1,"}, "fits"),
        ({"webhook-signature": "v1,é\udc80"}, "fits"),
    ],
)
def test_verify_says_why_it_refuses(change: dict[str, str], reason: str) -> None:
    with pytest.raises(BadSignature, match=reason):
        verify(BODY, sign(NEW) | change, [NEW], now=NOW)


def test_verify_refuses_another_body_another_secret_and_no_secret() -> None:
    for body, secrets in ((BODY + b" ", [NEW]), (BODY, [OLD]), (BODY, [])):
        with pytest.raises(BadSignature, match="fits"):
            verify(body, sign(NEW), secrets, now=NOW)


@pytest.mark.parametrize(
    ("value", "reason"),
    [("", "missing"), ("sha1=00", "sha256="), ("sha256=", "does not fit"), ("00", "sha256=")],
)
def test_verify_plain_says_why_it_refuses(value: str, reason: str) -> None:
    with pytest.raises(BadSignature, match=reason):
        verify_plain(BODY, {"X-Webhook-Signature": value}, [NEW], prefix="X-Webhook")


def test_no_error_shows_a_secret() -> None:
    with pytest.raises(BadSignature) as caught:
        verify(BODY, sign(OLD), [NEW], now=NOW)
    assert NEW not in repr(caught.value)
    assert OLD not in repr(caught.value)
