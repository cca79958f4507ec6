from __future__ import annotations

import base64

import pytest
from standardwebhooks import Webhook

from subscriptions.secrets.signing_secrets import InvalidSecret, generate, key_bytes, parse


def secret(length: int) -> str:
    return "whsec_" + base64.b64encode(bytes(range(length))).decode()


def test_a_generated_secret_has_32_random_bytes() -> None:
    first, second = generate(), generate()
    assert first != second
    assert len(key_bytes(first)) == 32
    assert parse(first) == first


def test_a_generated_secret_is_taken_by_the_standard_library_of_receivers() -> None:
    made = generate()
    assert Webhook(made)._whsecret == key_bytes(made)


@pytest.mark.parametrize("length", [24, 25, 26, 32, 63, 64])
def test_24_to_64_bytes_are_a_secret(length: int) -> None:
    assert parse(secret(length)) == secret(length)
    assert key_bytes(secret(length)) == bytes(range(length))


def test_white_space_around_a_pasted_secret_is_dropped() -> None:
    assert parse(f"  {secret(32)}\n") == secret(32)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (secret(23), "23 bytes"),
        (secret(65), "65 bytes"),
        ("whsec_", "base64"),
        ("", "whsec_"),
        (secret(32).removeprefix("whsec_"), "whsec_"),
        (secret(32).upper(), "whsec_"),
        (secret(32).rstrip("="), "base64"),
        (secret(32) + "=", "base64"),
        (secret(32)[:20] + "\n" + secret(32)[20:], "base64"),
        (secret(32)[:20] + " " + secret(32)[20:], "base64"),
        ("whsec_" + base64.urlsafe_b64encode(b"\xff" * 33).decode(), "base64"),
        ("whsec_" + "é" * 44, "base64"),
        # The last letter before the padding has bits that belong to no byte; some decoders refuse.
        (secret(32).replace("8=", "9="), "base64"),
        (None, "NoneType"),
        (secret(32).encode(), "bytes"),
    ],
)
def test_what_is_no_secret_is_refused_without_repeating_it(text: object, word: str) -> None:
    with pytest.raises(InvalidSecret, match=word) as caught:
        parse(text)
    body = str(text).replace("whsec_", "")
    message = str(caught.value)
    assert not any(body[at : at + 8] in message for at in range(len(body) - 7))
    assert caught.value.__cause__ is None
