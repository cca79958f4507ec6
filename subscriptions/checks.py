"""System checks: what would fail later, said at the start. Ids `webhooks.…`; see the hints."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connection
from psycopg_pool import PoolTimeout

from subscriptions.conf import conf, unknown_variables
from subscriptions.secrets import stored
from subscriptions.topics.rules import InvalidPattern, validate_pattern


@register("webhooks")
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
    if strangers := unknown_variables():
        found.append(
            Warning(
                f"No setting answers to {', '.join(strangers)}.",
                hint="Ignored. If one of them is meant for the webhook sender, .env.example has "
                "the names of its settings.",
                id="webhooks.W002",
            )
        )
    return found


@register("webhooks")
def check_project(**_: Any) -> Sequence[CheckMessage]:
    """What the project around the apps must have."""
    found: list[CheckMessage] = []
    if not settings.USE_TZ:
        found.append(
            Error(
                "USE_TZ is False: deliveries are planned in times with a time zone.",
                hint="Set USE_TZ = True. Where the project cannot, run the webhook sender as a "
                "project of its own.",
                id="webhooks.E004",
            )
        )
    if connection.vendor != "postgresql":
        found.append(
            Error(
                f"The default database is {connection.display_name}: deliveries need PostgreSQL, "
                "which is their queue.",
                hint="Point DATABASES['default'] at PostgreSQL, or run the webhook sender as a "
                "project of its own.",
                id="webhooks.E005",
            )
        )
    other = find_spec("deliveries")
    if other is None or Path(str(other.origin)).parent.parent != Path(__file__).parent.parent:
        found.append(
            Error(
                f"The package `deliveries` is another one: {getattr(other, 'origin', 'none')}.",
                hint="An application of the project has the name of ours. Rename it, or run the "
                "webhook sender as a project of its own.",
                id="webhooks.E006",
            )
        )
    return found


@register("webhooks", deploy=True)
def check_deployment(**_: Any) -> Sequence[CheckMessage]:
    """What is fit for development alone, and makes no error."""
    try:
        values = conf()
    except ImproperlyConfigured:
        return []  # `check_settings` says so
    found: list[CheckMessage] = []
    if settings.DEBUG:
        found.append(
            Warning(
                "DEBUG is on: error pages show settings and variables to whoever meets them.",
                hint="Unset WEBHOOKS_DEBUG.",
                id="webhooks.W101",
            )
        )
    if made := getattr(settings, "KEYS_OF_THE_CHECKOUT", ()):
        found.append(
            Warning(
                f"{' and '.join(made)}: this checkout made its own, in a file beside its data.",
                hint="Set keys of your own, and keep them where a backup of the database is not: "
                "without WEBHOOKS_SECRET_KEYS no signing secret can be read.",
                id="webhooks.W104",
            )
        )
    if private := [network for network in values.allowed_networks if not network.is_global]:
        found.append(
            Warning(
                "Receivers may be in networks that are not public: "
                f"{', '.join(map(str, private))}.",
                hint="Whoever may write a subscription's URL can send requests there. Leave only "
                "what is needed in WEBHOOKS_ALLOWED_NETWORKS.",
                id="webhooks.W102",
            )
        )
    longest = sum(values.quick_retries + values.slow_retries) * (1 + values.retry_jitter)
    for name in ("keep_failed_days", "hold_days"):
        days = getattr(values, name)
        if longest > days * 86400:
            found.append(
                Warning(
                    f"The retries of a delivery take up to {longest / 86400:.1f} days, and "
                    f"WEBHOOKS_{name.upper()} is {days:g}: what is held or has failed may be gone "
                    "before its like has been tried for the last time.",
                    hint=f"Raise WEBHOOKS_{name.upper()}, or shorten WEBHOOKS_SLOW_RETRIES.",
                    id="webhooks.W103",
                )
            )
    return found


@register("webhooks", Tags.database)
def check_stored_secrets(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """Whether the keys read what is stored. Silent if the database is unreachable or empty."""
    if "default" not in (databases or ()) or connection.vendor != "postgresql":
        return []
    try:
        readable, unreadable = stored.sample()
    except (DatabaseError, PoolTimeout, ImproperlyConfigured):
        return []
    if not unreadable:
        return []
    hint = (
        "Put the key that was in force back into WEBHOOKS_SECRET_KEYS (older keys go last). If it "
        "is lost, give each subscription a new secret: `manage.py rotate_secret NAME`."
    )
    if not readable:
        return [
            Error(
                "No signing secret can be decrypted: no key of WEBHOOKS_SECRET_KEYS made them. "
                "Nothing can be sent.",
                hint=hint,
                id="webhooks.E007",
            )
        ]
    return [
        Warning(
            f"{unreadable} of {readable + unreadable} signing secrets that were tried cannot be "
            "decrypted; nothing is sent to their subscriptions.",
            hint=hint,
            id="webhooks.W001",
        )
    ]
