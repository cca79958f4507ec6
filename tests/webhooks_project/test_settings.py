"""The Django settings, as the environment makes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from webhooks_project.engines import CHECKOUT

OUTSIDE = {
    "DATABASE_URL": "postgresql://somebody@db.test/x",
    "REDIS_URL": "redis://redis.test/0",
    "SECRET_KEY": "x" * 50,
    "WEBHOOKS_SECRET_KEYS": Fernet.generate_key().decode(),
}
SHOW = """
import json
from django.conf import settings
print(json.dumps({name: getattr(settings, name) for name in (
    "SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "CSRF_TRUSTED_ORIGINS",
    "SECURE_PROXY_SSL_HEADER", "SECURE_HSTS_SECONDS",
)}))
"""


def start(
    tmp_path: Path, variables: dict[str, str], *words: str
) -> subprocess.CompletedProcess[str]:
    ours = ("WEBHOOKS_", "DATABASE_URL", "REDIS_URL", "CELERY_", "SECRET_KEY")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, *(words or ("-c", SHOW))],
        env={
            **kept,
            "DJANGO_SETTINGS_MODULE": "webhooks_project.settings",
            "WEBHOOKS_ENV_FILE": "",
            "WEBHOOKS_LOCAL_DIR": str(tmp_path),
            **variables,
        },
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def shown(tmp_path: Path, variables: dict[str, str]) -> dict[str, object]:
    done = start(tmp_path, variables)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_an_installation_is_safe_behind_tls_unless_told_otherwise(tmp_path: Path) -> None:
    hosts = {"WEBHOOKS_ALLOWED_HOSTS": "hooks.example.com,.example.org"}
    assert shown(tmp_path, OUTSIDE | hosts) == {
        "SESSION_COOKIE_SECURE": True,
        "CSRF_COOKIE_SECURE": True,
        "CSRF_TRUSTED_ORIGINS": ["https://hooks.example.com", "https://*.example.org"],
        "SECURE_PROXY_SSL_HEADER": None,
        "SECURE_HSTS_SECONDS": 3600,
    }
    plain = shown(tmp_path, OUTSIDE | {"WEBHOOKS_HTTPS": "0"})
    assert (plain["SESSION_COOKIE_SECURE"], plain["CSRF_TRUSTED_ORIGINS"]) == (False, [])


@pytest.mark.parametrize("variables", [{}, OUTSIDE | {"WEBHOOKS_DEBUG": "1"}])
def test_a_checkout_and_debugging_need_no_tls(tmp_path: Path, variables: dict[str, str]) -> None:
    found = shown(tmp_path, variables)
    assert (found["SESSION_COOKIE_SECURE"], found["SECURE_HSTS_SECONDS"]) == (False, 0)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"REDIS_URL": ""}, "DATABASE_URL is set and REDIS_URL is not"),
        ({"DATABASE_URL": ""}, "REDIS_URL is set and DATABASE_URL is not"),
        ({"WEBHOOKS_ENV_FILE": "/no/such/.env"}, "WEBHOOKS_ENV_FILE is '/no/such/.env'"),
        ({"WEBHOOKS_HSTS_SECONDS": "long"}, "WEBHOOKS_HSTS_SECONDS is 'long'"),
        ({"WEBHOOKS_TRUSTED_ORIGINS": "hooks.example.com"}, "WEBHOOKS_TRUSTED_ORIGINS"),
        ({"WEBHOOKS_CIRCUIT_TRESHOLD": "5"}, "is WEBHOOKS_CIRCUIT_THRESHOLD meant?"),
        ({"WEBHOOKS_ALLOWED_HOST": "a.test"}, "is WEBHOOKS_ALLOWED_HOSTS meant?"),
    ],
)
def test_what_was_forgotten_or_misspelt_stops_the_start(
    tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    done = start(tmp_path, OUTSIDE | variables, "manage.py", "check")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_variables_of_somebody_else_with_our_prefix_are_warned_of(tmp_path: Path) -> None:
    """Kubernetes sets such for a service that is called `webhooks`."""
    strangers = {"WEBHOOKS_SERVICE_HOST": "10.0.0.1", "WEBHOOKS_PORT_80_TCP": "tcp://10.0.0.1:80"}
    done = start(tmp_path, OUTSIDE | strangers, "manage.py", "check")
    assert done.returncode == 0, done.stderr
    assert "webhooks.W002" in done.stderr
    assert "WEBHOOKS_PORT_80_TCP, WEBHOOKS_SERVICE_HOST" in done.stderr
