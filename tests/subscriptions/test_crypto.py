from __future__ import annotations

import dataclasses
import traceback

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured
from pytest_django.fixtures import SettingsWrapper

from subscriptions.conf import WebhookSettings
from subscriptions.crypto import SecretUnreadable, decrypt, encrypt, rotate

OLD, NEW = Fernet.generate_key().decode(), Fernet.generate_key().decode()
PLAIN = b"whsec_c2VjcmV0"


def use_keys(settings: SettingsWrapper, *keys: str) -> None:
    settings.WEBHOOKS = dataclasses.replace(WebhookSettings(), secret_keys=keys)


def test_what_is_encrypted_is_decrypted(settings: SettingsWrapper) -> None:
    use_keys(settings, NEW)
    token = encrypt(PLAIN)
    assert decrypt(token) == PLAIN
    assert token.isascii()
    assert PLAIN.decode() not in token
    assert encrypt(PLAIN) != token


def test_an_older_key_still_decrypts_and_the_newest_encrypts(settings: SettingsWrapper) -> None:
    use_keys(settings, OLD)
    token = encrypt(PLAIN)
    use_keys(settings, NEW, OLD)
    assert decrypt(token) == PLAIN
    made = encrypt(PLAIN)
    use_keys(settings, NEW)
    assert decrypt(made) == PLAIN


def test_a_rotated_secret_no_longer_needs_the_old_key(settings: SettingsWrapper) -> None:
    use_keys(settings, OLD)
    token = encrypt(PLAIN)
    use_keys(settings, NEW, OLD)
    rotated = rotate(token)
    use_keys(settings, NEW)
    assert decrypt(rotated) == PLAIN
    with pytest.raises(SecretUnreadable):
        decrypt(token)


def test_without_a_key_nothing_is_encrypted_or_read(settings: SettingsWrapper) -> None:
    use_keys(settings, NEW)
    token = encrypt(PLAIN)
    use_keys(settings)
    for act in (lambda: encrypt(PLAIN), lambda: decrypt(token), lambda: rotate(token)):
        with pytest.raises(ImproperlyConfigured, match=r"Fernet\.generate_key"):
            act()


def test_a_text_that_is_no_key_is_refused_without_repeating_it(settings: SettingsWrapper) -> None:
    use_keys(settings, "not a key")
    with pytest.raises(ImproperlyConfigured) as caught:
        encrypt(PLAIN)
    assert "not a key" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("damage", ["another key", "a flipped character", "", "no token", "é"])
def test_what_cannot_be_decrypted_says_so_and_shows_nothing(
    settings: SettingsWrapper, damage: str
) -> None:
    use_keys(settings, OLD)
    token = encrypt(PLAIN)
    if damage == "another key":
        use_keys(settings, NEW)
    elif damage == "a flipped character":
        token = token[:40] + ("A" if token[40] != "A" else "B") + token[41:]
    else:
        token = damage
    for act in (decrypt, rotate):
        with pytest.raises(SecretUnreadable, match="WEBHOOKS_SECRET_KEYS") as caught:
            act(token)
        shown = str(caught.value) + repr(caught.value)
        assert OLD not in shown and NEW not in shown and PLAIN.decode() not in shown
        assert not token or token not in shown or len(token) < 2
