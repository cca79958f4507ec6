"""System checks: what would fail later, said at the start."""

from collections.abc import Sequence
from typing import Any

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from subscriptions.conf import conf
from subscriptions.topics import InvalidPattern, validate_pattern


@register()
def check_settings(**_: Any) -> Sequence[CheckMessage]:
    try:
        values = conf()
    except ImproperlyConfigured as error:
        return [Error(str(error), id="webhooks.E001")]
    found: list[CheckMessage] = []
    if not values.secret_keys:
        found.append(
            Error(
                "WEBHOOKS_SECRET_KEYS is empty: signing secrets can be neither stored nor read.",
                hint='Make one with `python -c "from cryptography.fernet import Fernet; '
                'print(Fernet.generate_key().decode())"`.',
                id="webhooks.E002",
            )
        )
    for name, patterns in values.topic_groups.items():
        for pattern in patterns:
            try:
                validate_pattern(pattern)
            except InvalidPattern as error:
                found.append(
                    Error(f"WEBHOOKS_TOPIC_GROUPS, group {name!r}: {error}", id="webhooks.E003")
                )
    return found
