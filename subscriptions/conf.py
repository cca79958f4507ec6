"""The one place that reads this project's own settings.

`WebhookSettings.from_env()` reads the environment (prefix `WEBHOOKS_`); a wrong
value raises `ImproperlyConfigured` with one sentence that names the variable,
the value and what would be right. A Django project that embeds the two apps
sets `WEBHOOKS = WebhookSettings(...)` or `WebhookSettings.from_env()`.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import json
import math
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography.fernet import Fernet
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email

PREFIX = "WEBHOOKS_"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _whole(minimum: int, maximum: int = 10**12) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"a whole number from {minimum} to {maximum}") from None
        if not minimum <= value <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return value

    return parse


def _number(of: str, minimum: float, maximum: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:
            raise ValueError(f"a number of {of} from {minimum:g} to {maximum:g}")
        return value

    return parse


def _seconds(minimum: float, maximum: float = 10**9) -> Callable[[str], float]:
    return _number("seconds", minimum, maximum)


def _days(minimum: float, maximum: float = 36600) -> Callable[[str], float]:
    """At most a hundred years: neither Python nor PostgreSQL knows a date a million days off."""
    return _number("days", minimum, maximum)


def _delays(text: str) -> tuple[float, ...]:
    wanted = "a comma-separated list of seconds such as 1,2,4, or empty for none"
    try:
        values = tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise ValueError(wanted) from None
    if len(values) > 1000 or not all(0 <= value <= 30 * 86400 for value in values):
        raise ValueError(f"{wanted}, at most 1000 of them, each from 0 to 30 days")
    return values


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(" or ".join(allowed))
        return text

    return parse


def _on_or_off(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError("on or off")
    return text == "on"


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ValueError("a fraction from 0 up to 1, such as 0.2")
    return value


def _header_prefix(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,60}[A-Za-z0-9]", text):
        raise ValueError("the beginning of a header name, such as X-Webhook")
    if text.lower() == "webhook":
        # The names of headers are the same in any case.
        raise ValueError("another one, for Standard Webhooks has webhook-signature and the like")
    return text


def _networks(text: str) -> tuple[Network, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tuple(ipaddress.ip_network(part) for part in parts)
    except ValueError as error:
        raise ValueError(
            f"a comma-separated list of networks such as 10.1.0.0/16 ({error})"
        ) from None


def _file(text: str) -> str:
    if text and not os.path.isfile(text):
        raise ValueError("the path of a file that exists")
    return text


def _certificates(text: str) -> str:
    if _file(text):
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(text)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"a file of certificates (PEM) that can be read ({error})") from None
    return text


def _fernet_keys(text: str) -> tuple[str, ...]:
    keys = tuple(part.strip() for part in text.split(",") if part.strip())
    for number, key in enumerate(keys, 1):
        try:
            Fernet(key)
        except ValueError:
            raise ValueError(
                "a comma-separated list of Fernet keys (32 bytes in URL-safe base64), newest "
                f"first; key {number} is not one"
            ) from None
    return keys


def _token(text: str) -> str:
    if text and not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,200}=*", text):
        raise ValueError("16 to 200 letters, digits and any of ._~+/-, or empty")
    return text


def _emails(text: str) -> tuple[str, ...]:
    addresses = tuple(part.strip() for part in text.split(",") if part.strip())
    for address in addresses:
        try:
            validate_email(address)
        except ValidationError:
            raise ValueError(
                "a comma-separated list of addresses such as ops@example.com; "
                f"{address[:80]!r} is none"
            ) from None
    return addresses


def _base_url(text: str) -> str:
    wanted = "an address such as https://hooks.example.com, or empty"
    try:
        # A port that is none, or half of the brackets of an IPv6 address.
        _ = urlsplit(text).port
    except ValueError:
        raise ValueError(wanted) from None
    if text and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        raise ValueError(wanted)
    return text.rstrip("/")


def _pattern_groups(text: str) -> dict[str, tuple[str, ...]]:
    wanted = 'a JSON object of lists of topic patterns, such as {"all attacks": ["attacker.>"]}'
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise ValueError(wanted) from None
    if not isinstance(value, dict) or not all(
        name.strip()
        and isinstance(patterns, list)
        and patterns
        and all(isinstance(pattern, str) for pattern in patterns)
        for name, patterns in value.items()
    ):
        raise ValueError(wanted)
    return {name: tuple(patterns) for name, patterns in value.items()}


def _setting(default: Any, parse: Callable[[str], Any], doc: str, *, secret: bool = False) -> Any:
    """A field with its parser (`ValueError` says what would be right) and its documentation."""
    metadata = {"parse": parse, "doc": doc, "secret": secret}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class WebhookSettings:
    """Every setting of the apps. Times are in seconds unless the name says otherwise."""

    circuit_threshold: int = _setting(
        5, _whole(1, 32767), "failures in a row that trip a subscription's circuit"
    )
    circuit_recovery: str = _setting(
        "automatic",
        _one_of("automatic", "manual"),
        "what a new subscription does once tripped: `automatic` probes it, `manual` waits for you",
    )
    fuse_trips: int = _setting(
        10, _whole(1), "so many trips within the fuse's window are never too many"
    )
    fuse_share: float = _setting(
        0.2,
        _fraction,
        "beyond that, trips of more than this share of the active subscriptions blow the fuse: "
        "nothing more trips, because our own network is the likelier cause",
    )
    fuse_window: float = _setting(300.0, _seconds(1, 86400), "seconds over which trips add up")
    probe_first: float = _setting(
        300.0, _seconds(0.05), "seconds from the trip to the first probe; doubled after each"
    )
    probe_most: float = _setting(21600.0, _seconds(0.05), "the longest time between two probes")
    quick_retries: tuple[float, ...] = _setting(
        (1.0, 2.0, 4.0), _delays, "delays of the quick retries, which the circuit does not count"
    )
    slow_retries: tuple[float, ...] = _setting(
        (300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0),
        _delays,
        "delays of the slow retries; empty: a delivery whose quick retries are spent has failed",
    )
    retry_jitter: float = _setting(0.2, _fraction, "each delay is spread by this share either way")
    request_timeout: float = _setting(
        10.0, _seconds(0.1, 300), "total seconds for one request, from DNS to the last body byte"
    )
    max_payload_bytes: int = _setting(
        262144, _whole(256, 64 * 2**20), "the largest body that `publish` accepts, in bytes"
    )
    header_prefix: str = _setting(
        "X-Webhook", _header_prefix, "what the plain headers' names begin with"
    )
    allowed_networks: tuple[Network, ...] = _setting(
        (),
        _networks,
        "networks (CIDR) that the destination guard lets through although they are not public",
    )
    secret_keys: tuple[str, ...] = _setting(
        (), _fernet_keys, "Fernet keys that encrypt signing secrets, newest first", secret=True
    )
    secret_overlap: float = _setting(
        86400.0, _seconds(0), "how long the old signing secret stays valid after a rotation"
    )
    fanout_chunk: int = _setting(
        100,
        _whole(1, 10000),
        "how many subscriptions one message wakes while Redis, where wake-ups gather, is down",
    )
    max_in_flight: int = _setting(
        10, _whole(1, 1000), "requests in flight to one subscription, unless it says otherwise"
    )
    time_slice: float = _setting(
        1.0,
        _seconds(0.1, 300),
        "how long one claim begins requests for a subscription, before it is claimed again: then "
        "others have had their turn, and its URL and secrets are read again",
    )
    max_backoff: float = _setting(
        3600.0,
        _seconds(1, 86400),
        "the longest that nothing is sent to a subscription because its receiver asks for that "
        "or keeps failing; a single delivery may wait longer",
    )
    body_memory: int = _setting(
        64 * 2**20,
        _whole(2**20),
        "bytes of event bodies that one worker process holds for requests, at most",
    )
    claim_batch: int = _setting(
        200,
        _whole(1, 1000),
        "deliveries of one subscription that are claimed at once, at most; nor more than twenty "
        "times its requests in flight",
    )
    sweep_interval: int = _setting(
        5,
        # django-celery-beat keeps whole seconds, and takes half a second for none at all.
        _whole(1, 3600),
        "seconds between two sweeps for due work that has no wake-up, a whole number",
    )
    prepared_statements: bool = _setting(
        True,
        _on_or_off,
        "PostgreSQL plans the frequent statements once a connection; off behind a pooler that "
        "gives each transaction another connection, such as PgBouncer in transaction mode",
    )
    dns_cache: float = _setting(
        30.0,
        _seconds(0, 3600),
        "seconds after which a host name is looked up again; meanwhile its address is used",
    )
    ca_file: str = _setting(
        "", _certificates, "certificate authorities (PEM) to trust instead of the bundle of certifi"
    )
    hold_days: float = _setting(
        7.0, _days(0.0001), "days after which a held delivery expires and is discarded"
    )
    keep_succeeded_days: float = _setting(
        30.0, _days(0.0001), "days that succeeded deliveries are kept"
    )
    keep_failed_days: float = _setting(
        90.0, _days(0.0001), "days that failed and discarded deliveries are kept"
    )
    keep_statistics_days: float = _setting(
        90.0,
        _days(1, 3660),
        "days that the hourly numbers of each subscription are kept (those of minutes: 8 days)",
    )
    api_rate_limit: int = _setting(
        1000,
        _whole(0, 10**5),
        "requests a second that one API key may send, with a second's worth at once; 0: any number",
    )
    api_max_body_bytes: int = _setting(
        8 * 2**20, _whole(1024, 2**30), "the largest body of a request to the API, in bytes"
    )
    log_successes: bool = _setting(
        True,
        _on_or_off,
        "the log has a line for each attempt that succeeds; those that fail always have one",
    )
    send_traceparent: bool = _setting(
        False,
        _on_or_off,
        "receivers get the header `traceparent`, if the event was published in a trace: their "
        "traces go on from the attempt's span",
    )
    metrics_token: str = _setting(
        "",
        _token,
        "who asks for `/metrics` must know this, of 16 characters or more "
        "(`Authorization: Bearer …`); empty: nobody may",
        secret=True,
    )
    notice_emails: tuple[str, ...] = _setting(
        (),
        _emails,
        "who is told by e-mail of trips, recoveries and the like: addresses, separated by commas",
    )
    base_url: str = _setting(
        "", _base_url, "where the admin is reached from outside, for links in notices"
    )
    keep_audit_days: float = _setting(365.0, _days(1), "days that entries of the audit are kept")
    topic_groups: dict[str, tuple[str, ...]] = _setting(  # noqa: RUF009
        {}, _pattern_groups, "names for groups of topic patterns, as JSON"
    )

    @property
    def lease(self) -> float:
        """Seconds that a claim is good for: a time slice, one last request, and room to settle."""
        return self.time_slice + self.request_timeout + 10

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> WebhookSettings:
        """Read `WEBHOOKS_*` from `environ` (default: the process's own environment).

        Raises `ImproperlyConfigured` for a wrong value and for a misspelt name. Other variables
        that begin with `WEBHOOKS_` are somebody else's; a system check names them.
        """
        environ = os.environ if environ is None else environ
        known = {PREFIX + field.name.upper(): field for field in dataclasses.fields(cls)}
        values = {}
        for name, text in environ.items():
            if not name.startswith(PREFIX) or name in PROCESS_VARIABLES:
                continue
            if name not in known:
                if meant := _misspelt(name, [*known, *PROCESS_VARIABLES]):
                    raise ImproperlyConfigured(f"{name} is not a setting; is {meant} meant?")
                continue
            field = known[name]
            try:
                values[field.name] = field.metadata["parse"](text)
            except ValueError as error:
                shown = "set" if field.metadata["secret"] else repr(text[:80])
                raise ImproperlyConfigured(f"{name} is {shown}; it must be {error}.") from None
        found = cls(**values)
        if found.probe_first > found.probe_most:
            raise ImproperlyConfigured(
                f"{PREFIX}PROBE_FIRST is {found.probe_first:g} and {PREFIX}PROBE_MOST "
                f"{found.probe_most:g}; the first probe must not wait longer than the others."
            )
        return found


def _misspelt(name: str, names: Sequence[str]) -> str:
    """Which of `names` a variable is that differs in a few letters only; "" for none."""
    bare = [name.removeprefix(PREFIX) for name in names]
    close = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1, cutoff=0.8)
    return PREFIX + close[0] if close else ""


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """The names of `WEBHOOKS_` variables that no setting answers to."""
    known = {PREFIX + field.name.upper() for field in dataclasses.fields(WebhookSettings)}
    environ = os.environ if environ is None else environ
    return sorted(
        name
        for name in environ
        if name.startswith(PREFIX) and name not in known | PROCESS_VARIABLES
    )


# Variables with the same prefix that tell one process how to run; not settings of the apps.
PROCESS_VARIABLES = {
    "WEBHOOKS_HTTPS",
    "WEBHOOKS_HSTS_SECONDS",
    "WEBHOOKS_PROXY_HEADER",
    "WEBHOOKS_TRUSTED_ORIGINS",
    "WEBHOOKS_LOCAL_DIR",
    "WEBHOOKS_READY_FILE",
    "WEBHOOKS_DEBUG",
    "WEBHOOKS_DEMO",
    "WEBHOOKS_ENV_FILE",
    "WEBHOOKS_ALLOWED_HOSTS",
    "WEBHOOKS_LOG_LEVEL",
    "WEBHOOKS_LOG_FORMAT",
}


def conf() -> WebhookSettings:
    """The settings in force: `settings.WEBHOOKS`, or the environment's."""
    value = getattr(settings, "WEBHOOKS", None)
    if isinstance(value, WebhookSettings):
        return value
    if value is None:
        settings.WEBHOOKS = WebhookSettings.from_env()
        return settings.WEBHOOKS  # type: ignore[no-any-return]
    raise ImproperlyConfigured("settings.WEBHOOKS must be a subscriptions.conf.WebhookSettings.")
