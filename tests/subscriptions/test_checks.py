"""What would fail later is said at the start, with an id and a hint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from django.core.checks import CheckMessage, run_checks
from django.db import connection
from django.db.utils import OperationalError

from subscriptions.models import SigningSecret
from tests.factories import make_subscription

ROOT = Path(__file__).resolve().parents[2]


def ours(**arguments: Any) -> list[CheckMessage]:
    found = [one for one in run_checks(**arguments) if str(one.id).startswith("webhooks.")]
    assert found == run_checks(tags=["webhooks"], **arguments), "what a worker asks at its start"
    assert all(one.hint for one in found)
    return found


def ids(**arguments: Any) -> list[str]:
    return [str(one.id) for one in ours(**arguments)]


def test_the_project_itself_is_clean() -> None:
    assert ids() == []


def test_a_project_without_time_zones_is_told(settings: Any) -> None:
    settings.USE_TZ = False
    assert ids() == ["webhooks.E004"]


@pytest.mark.parametrize("address", [None, "", "localhost:6379", "http://localhost"])
def test_a_project_without_redis_is_told(settings: Any, address: str | None) -> None:
    if address is None:
        del settings.REDIS_URL
    else:
        settings.REDIS_URL = address
    assert ids() == ["webhooks.E010"]


HOST = """
import django
from django.conf import settings
from django.core.management import call_command
from subscriptions.conf import WebhookSettings

settings.configure(
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
    REDIS_URL="redis://127.0.0.1:1/0",
    WEBHOOKS=WebhookSettings(secret_keys=({key!r},)),
    INSTALLED_APPS=["django.contrib.contenttypes", "django_celery_beat", "subscriptions",
                    "deliveries"],
    USE_TZ=True,
)
django.setup()
call_command({command})
"""


def python(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PATH": "", "PYTHONPATH": f"{folder}:{ROOT}"},
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["'check'", "'migrate', skip_checks=False"])
def test_a_project_on_another_database_is_told(tmp_path: Path, command: str) -> None:
    key = Fernet.generate_key().decode()
    done = python(HOST.format(key=key, command=command), tmp_path)
    assert done.returncode == 1
    assert "(webhooks.E005) The default database is SQLite" in done.stderr
    assert "HINT: " in done.stderr


def test_an_application_of_the_project_called_subscriptions_is_named(tmp_path: Path) -> None:
    (tmp_path / "subscriptions").mkdir()
    (tmp_path / "subscriptions" / "__init__.py").touch()
    program = """
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["subscriptions", "deliveries"])
django.setup()
"""
    done = python(program, tmp_path)
    assert done.returncode == 1
    sentence = done.stderr.splitlines()[-1]
    assert str(tmp_path / "subscriptions") in sentence
    assert "rename it, or run the webhook sender as a project of its own" in sentence


def test_an_application_of_the_project_called_deliveries_is_named(tmp_path: Path) -> None:
    (tmp_path / "deliveries").mkdir()
    (tmp_path / "deliveries" / "__init__.py").touch()
    key = Fernet.generate_key().decode()
    done = python(HOST.format(key=key, command="'check'"), tmp_path)
    assert f"(webhooks.E006) The package `deliveries` is another one: {tmp_path}" in done.stderr


# Secrets that no key decrypts.


@pytest.mark.django_db
def test_secrets_that_no_key_decrypts_are_an_error(configure: Callable[..., None]) -> None:
    assert ids(databases=["default"]) == []
    make_subscription()
    assert ids(databases=["default"]) == []
    configure(secret_keys=(Fernet.generate_key().decode(),))
    [error] = ours(databases=["default"])
    assert error.id == "webhooks.E007"
    assert "rotate_secret" in str(error.hint)
    assert ids() == [], "the database is asked only where it may be"


@pytest.mark.django_db
def test_some_secrets_that_no_key_decrypts_are_a_warning() -> None:
    for _ in range(3):
        subscription = make_subscription()
    SigningSecret.objects.filter(subscription=subscription).update(ciphertext="gAAAAnonsense")
    [warning] = ours(databases=["default"])
    assert (warning.id, warning.msg[:8]) == ("webhooks.W001", "1 of 3 s")


@pytest.mark.django_db
def test_a_database_that_is_away_is_no_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OperationalError("no such host")

    monkeypatch.setattr(connection, "cursor", fail)
    from subscriptions.checks import check_stored_secrets

    assert check_stored_secrets(databases=["default"]) == []
