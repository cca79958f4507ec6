"""Re-encrypting every signing secret, so that an old key can go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.conf import settings
from django.db import transaction

from subscriptions.models import SigningSecret, Subscription
from subscriptions.secrets import crypto, stored
from tests.commands import refusal, run, run_json
from tests.factories import make_subscription_with_secret

pytestmark = pytest.mark.django_db(transaction=True)

NEW = Fernet.generate_key().decode()


@pytest.fixture
def old() -> str:
    return settings.WEBHOOKS.secret_keys[0]  # type: ignore[no-any-return]


def made(count: int) -> dict[str, str]:
    """Subscriptions' secrets by name, stored under whatever key is in force."""
    pairs = (make_subscription_with_secret() for _ in range(count))
    return {subscription.name: secret for subscription, secret in pairs}


def in_use() -> dict[str, str]:
    return {
        one.subscription.name: crypto.decrypt(one.ciphertext).decode()
        for one in SigningSecret.objects.live().select_related("subscription")
    }


def test_the_old_key_can_go_once_all_is_re_encrypted(
    old: str, configure: Callable[..., None]
) -> None:
    secrets = made(5)
    configure(secret_keys=(NEW, old))
    assert "still needed" in refusal("rotate_keys", "--check")
    assert SigningSecret.objects.count() == stored.count().older == 5, "nothing was changed"
    output = run("rotate_keys")
    assert "Re-encrypted:         5" in output
    assert "The older keys can go" in output
    configure(secret_keys=(NEW,))
    assert in_use() == secrets
    assert run_json("rotate_keys") == {
        "changed": 0, "newest": 5, "older": 0, "unreadable": 0, "old_keys_can_go": True,
    }  # fmt: skip
    assert "The older keys can go" in run("rotate_keys", "--check")


def test_it_may_be_ended_anywhere_and_run_again(
    old: str, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = made(7)
    configure(secret_keys=(NEW, old))
    rotations = 0

    def interrupted(token: str) -> str:
        nonlocal rotations
        rotations += 1
        if rotations == 5:
            raise KeyboardInterrupt
        return rotate(token)

    rotate = crypto.rotate
    monkeypatch.setattr(crypto, "rotate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored.re_encrypt(batch=2)
    assert (stored.count().newest, stored.count().older) == (4, 3)
    assert stored.re_encrypt(batch=2) == 3
    assert in_use() == secrets


def test_a_secret_that_is_written_meanwhile_keeps_what_was_written(
    old: str, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(1)
    configure(secret_keys=(NEW, old))
    other = Fernet(old).encrypt(b"whsec_written_meanwhile").decode()

    def meanwhile(token: str) -> str:
        SigningSecret.objects.update(ciphertext=other)
        return rotate(token)

    rotate = crypto.rotate
    monkeypatch.setattr(crypto, "rotate", meanwhile)
    assert stored.re_encrypt() == 0
    assert SigningSecret.objects.get().ciphertext == other


def test_what_somebody_has_locked_is_left_for_the_next_run(
    old: str, configure: Callable[..., None], at_once: Callable[..., list[Any]]
) -> None:
    made(3)
    configure(secret_keys=(NEW, old))
    with transaction.atomic():
        SigningSecret.objects.select_for_update().first()
        assert at_once(lambda _: stored.re_encrypt(), 1) == [2]
        [sentence] = at_once(lambda _: refusal("rotate_keys"), 1)
        assert "Run it again" in sentence
    assert stored.re_encrypt() == 1


def test_it_runs_while_secrets_are_made_and_rotated(
    old: str, configure: Callable[..., None], at_once: Callable[..., list[Any]]
) -> None:
    made(40)
    configure(secret_keys=(NEW, old))
    everything = list(Subscription.objects.all())
    working = threading.Barrier(3)
    shown: dict[str, str] = {}

    def work(number: int) -> None:
        working.wait(30)
        if number:
            for one in everything[:: -1 if number == 1 else 1][:30]:
                shown[one.name] = Subscription.objects.get(pk=one.pk).rotate_secret(overlap=0)
        else:
            for _ in range(5):
                stored.re_encrypt(batch=3)

    at_once(work, 3)
    stored.re_encrypt()
    configure(secret_keys=(NEW,))
    assert stored.count().older == stored.count().unreadable == 0
    kept = in_use()
    # Those that both threads rotated have the secret of whichever was the later.
    once = {one.name for one in everything[:10] + everything[-10:]}
    assert {name: kept[name] for name in once} == {name: shown[name] for name in once}


def test_a_secret_that_no_key_decrypts_is_counted_and_left(
    old: str, configure: Callable[..., None]
) -> None:
    made(2)
    broken = SigningSecret.objects.first()
    assert broken is not None
    SigningSecret.objects.filter(pk=broken.pk).update(ciphertext="gAAAAnonsense")
    configure(secret_keys=(NEW, old))
    message = refusal("rotate_keys")
    assert "Secrets in use that no key can decrypt: 1." in message
    assert (stored.count().newest, stored.count().unreadable) == (1, 1)
    # One that has ended keeps no key alive.
    broken.subscription.rotate_secret(overlap=0)
    assert "The older keys can go" in run("rotate_keys")
