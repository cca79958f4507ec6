"""A wrong setting stops the start with a sentence."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys

import pytest
from cryptography.fernet import Fernet
from django.core.exceptions import ImproperlyConfigured

from subscriptions.conf import WebhookSettings


def test_settings_are_read_with_their_types() -> None:
    key = Fernet.generate_key().decode()
    values = WebhookSettings.from_env(
        {
            "WEBHOOKS_CIRCUIT_THRESHOLD": "7",
            "WEBHOOKS_QUICK_RETRIES": "0.5, 1",
            "WEBHOOKS_SLOW_RETRIES": "",
            "WEBHOOKS_ALLOWED_NETWORKS": "10.0.0.0/8, fd00::/8",
            "WEBHOOKS_SECRET_KEYS": key,
            "WEBHOOKS_TOPIC_GROUPS": '{"attacker detail": ["attacker.>"]}',
            "SOMETHING_ELSE": "x",
        }
    )
    assert values.circuit_threshold == 7
    assert values.quick_retries == (0.5, 1.0)
    assert values.slow_retries == ()
    assert values.allowed_networks == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
    )
    assert values.secret_keys == (key,)
    assert values.topic_groups == {"attacker detail": ("attacker.>",)}
    assert values.lease > values.time_slice + values.request_timeout
    assert key not in repr(values)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("CIRCUIT_THRESHOLD", "abc", "a whole number from 1"),
        ("CIRCUIT_THRESHOLD", "0", "a whole number from 1"),
        ("CIRCUIT_RECOVERY", "maybe", "automatic or manual"),
        ("QUICK_RETRIES", "1,x", "comma-separated"),
        ("QUICK_RETRIES", "nan", "comma-separated"),
        ("SLOW_RETRIES", "-1", "comma-separated"),
        ("REQUEST_TIMEOUT", "nan", "a number of seconds"),
        ("REQUEST_TIMEOUT", "0", "a number of seconds"),
        ("RETRY_JITTER", "1", "a fraction"),
        ("SWEEP_INTERVAL", "0.5", "a whole number from 1"),
        ("HOLD_DAYS", "2500000", "a number of days from 0.0001 to 36600"),
        ("KEEP_AUDIT_DAYS", "1e9", "a number of days"),
        ("HEADER_PREFIX", "wEBHOOK", "Standard Webhooks"),
        ("CLAIM_BATCH", "1001", "a whole number from 1 to 1000"),
        ("CA_FILE", __file__, "a file of certificates"),
        ("API_RATE_LIMIT", "100001", "a whole number from 0 to 100000"),
        ("HEADER_PREFIX", "X Webhook", "header name"),
        ("HEADER_PREFIX", "X-\r\nHost", "header name"),
        ("ALLOWED_NETWORKS", "10.0.0.1/8", "networks"),
        ("BASE_URL", "hooks.example.com", "an address such as"),
        ("BASE_URL", "https://[::1", "an address such as"),
        ("BASE_URL", "https://hooks.example.com:99999", "an address such as"),
        ("TOPIC_GROUPS", '{"a": "b"}', "a JSON object"),
        ("TOPIC_GROUPS", "{", "a JSON object"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, text: str, says: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        WebhookSettings.from_env({f"WEBHOOKS_{name}": text})
    assert f"WEBHOOKS_{name} is {text!r}" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("SLOW_RETRIES", ",".join(["1"] * 1001), "at most 1000"),
        ("TOPIC_GROUPS", "[" * 60_000, "a JSON object"),
    ],
)
def test_a_value_that_is_too_long_is_shown_in_part(name: str, text: str, says: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        WebhookSettings.from_env({f"WEBHOOKS_{name}": text})
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_first_probe_waits_no_longer_than_the_others() -> None:
    with pytest.raises(ImproperlyConfigured, match="PROBE_FIRST is 300 and WEBHOOKS_PROBE_MOST 60"):
        WebhookSettings.from_env({"WEBHOOKS_PROBE_MOST": "60"})


def test_a_wrong_key_is_not_repeated() -> None:
    with pytest.raises(ImproperlyConfigured, match="key 1 is not one") as caught:
        WebhookSettings.from_env({"WEBHOOKS_SECRET_KEYS": "hunter2hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_misspelt_setting_is_not_ignored() -> None:
    with pytest.raises(ImproperlyConfigured, match="is WEBHOOKS_CIRCUIT_THRESHOLD meant"):
        WebhookSettings.from_env({"WEBHOOKS_CIRCUIT_TRESHOLD": "3"})


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("WEBHOOKS_CIRCUIT_THRESHOLD", "many", "WEBHOOKS_CIRCUIT_THRESHOLD is 'many'"),
        ("DATABASE_URL", "sqlite:///x", "DATABASE_URL"),
        ("WEBHOOKS_DEBUG", "perhaps", "WEBHOOKS_DEBUG is 'perhaps'"),
    ],
)
def test_a_command_says_so_in_one_sentence(variable: str, text: str, says: str) -> None:
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "webhooks_project.settings"}
    found = subprocess.run(
        [sys.executable, "manage.py", "check"],
        env=environment | {"SECRET_KEY": "x" * 50, variable: text},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 1
    assert found.stderr.startswith("Configuration: ")
    assert says in found.stderr
    assert "Traceback" not in found.stderr
