from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from subscriptions.conf import WebhookSettings
from subscriptions.secrets.crypto import SecretUnreadable, decrypt, encrypt, rotate

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
PLAIN = b"whsec_c2VjcmV0"


UseKeys = Callable[..., None]


@pytest.fixture
def use_keys(monkeypatch: pytest.MonkeyPatch) -> UseKeys:
    def use(*keys: str) -> None:
        monkeypatch.setattr(settings, "WEBHOOKS", WebhookSettings(secret_keys=keys))

    return use


def test_what_is_encrypted_is_decrypted(use_keys: UseKeys) -> None:
    use_keys(NEW)
    token = encrypt(PLAIN)
    assert decrypt(token) == PLAIN
    assert token.isascii()
    assert PLAIN.decode() not in token
    assert encrypt(PLAIN) != token


def test_an_older_key_still_decrypts_and_the_newest_encrypts(use_keys: UseKeys) -> None:
    use_keys(OLD)
    token = encrypt(PLAIN)
    use_keys(NEW, OLD)
    assert decrypt(token) == PLAIN
    made = encrypt(PLAIN)
    use_keys(NEW)
    assert decrypt(made) == PLAIN


def test_a_rotated_secret_no_longer_needs_the_old_key(use_keys: UseKeys) -> None:
    use_keys(OLD)
    token = encrypt(PLAIN)
    use_keys(NEW, OLD)
    rotated = rotate(token)
    use_keys(NEW)
    assert decrypt(rotated) == PLAIN
    with pytest.raises(SecretUnreadable):
        decrypt(token)


def test_without_a_key_nothing_is_encrypted_or_read(use_keys: UseKeys) -> None:
    use_keys(NEW)
    token = encrypt(PLAIN)
    use_keys()
    for act in (lambda: encrypt(PLAIN), lambda: decrypt(token), lambda: rotate(token)):
        with pytest.raises(ImproperlyConfigured, match=r"Fernet\.generate_key"):
            act()


def test_a_text_that_is_no_key_is_refused_without_repeating_it(use_keys: UseKeys) -> None:
    use_keys("not a key")
    with pytest.raises(ImproperlyConfigured) as caught:
        encrypt(PLAIN)
    assert "not a key" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "damage", ["another key", "a flipped character", "", "no such token", "é" * 20]
)
def test_what_cannot_be_decrypted_says_so_and_shows_nothing(use_keys: UseKeys, damage: str) -> None:
    use_keys(OLD)
    token = encrypt(PLAIN)
    if damage == "another key":
        use_keys(NEW)
    elif damage == "a flipped character":
        token = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
    else:
        token = damage
    for act in (decrypt, rotate):
        with pytest.raises(SecretUnreadable, match="WEBHOOKS_SECRET_KEYS") as caught:
            act(token)
        shown = str(caught.value) + repr(caught.value)
        for secret in (OLD, NEW, PLAIN.decode(), token[:20] or OLD):
            assert secret not in shown
