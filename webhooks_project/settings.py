"""Django settings. Everything that differs between installations comes from the environment.

`.env.example` documents each variable; a `.env` file beside `manage.py` is read too (the
process's own environment wins). With `DATABASE_URL` and `REDIS_URL` unset, both engines run
embedded under `.local/`, as children of `manage.py up`.
"""

import os
from pathlib import Path
from typing import Any

import dj_database_url
from django.core.exceptions import ImproperlyConfigured
from dotenv import load_dotenv

from deliveries.waking.redis_address import RedisAddress
from subscriptions.conf import WebhookSettings
from subscriptions.database import VANISHED_SERVER
from webhooks_project import engines, logs
from webhooks_project.control_room import CONTROL_ROOM
from webhooks_project.email_url import email_settings
from webhooks_project.keys import local_keys

BASE_DIR = Path(__file__).resolve().parent.parent

# Another file by WEBHOOKS_ENV_FILE, or none if that is empty.
if _env_file := os.environ.get("WEBHOOKS_ENV_FILE", str(BASE_DIR / ".env")):
    if "WEBHOOKS_ENV_FILE" in os.environ and not Path(_env_file).is_file():
        raise ImproperlyConfigured(f"WEBHOOKS_ENV_FILE is {_env_file!r}; there is no such file.")
    load_dotenv(_env_file)


def _flag(name: str, default: bool = False) -> bool:
    text = os.environ.get(name, "").strip().lower()
    if text not in {"", "0", "1", "true", "false", "yes", "no"}:
        raise ImproperlyConfigured(f"{name} is {text!r}; it must be 1 or 0.")
    return text in {"1", "true", "yes"} if text else default


def _list(name: str, default: str = "") -> list[str]:
    text = os.environ.get(name, default)
    return [part.strip() for part in text.split(",") if part.strip()]


# Half an installation would keep its other half on each machine.
for _here, _there in (("DATABASE_URL", "REDIS_URL"), ("REDIS_URL", "DATABASE_URL")):
    if os.environ.get(_here, "").strip() and not os.environ.get(_there, "").strip():
        raise ImproperlyConfigured(
            f"{_here} is set and {_there} is not. Set both, or neither: then both engines run "
            "embedded."
        )

# A checkout that runs on embedded engines is a development machine: it may make its own keys.
# With a database of your own, a missing key stops the start instead.
if engines.embedded_database():
    for _name, _value in local_keys().items():
        os.environ[_name] = os.environ.get(_name) or _value
    # `check --deploy` names them.
    KEYS_OF_THE_CHECKOUT = [
        _name for _name, _value in local_keys().items() if os.environ[_name] == _value
    ]

SECRET_KEY = os.environ.get("SECRET_KEY", "")
if not SECRET_KEY:
    raise ImproperlyConfigured(
        "SECRET_KEY is not set. Set it to a long random text, for example the output of "
        '`python -c "import secrets; print(secrets.token_urlsafe(50))"`.'
    )
DEBUG = _flag("WEBHOOKS_DEBUG")
ALLOWED_HOSTS = _list("WEBHOOKS_ALLOWED_HOSTS", "127.0.0.1,localhost,[::1]")

# TLS ends at a proxy before the web. A checkout on its own engines has none.
_https = _flag("WEBHOOKS_HTTPS", default=not DEBUG and not engines.embedded_database())
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _https
_origins = [
    f"https://{f'*{host}' if host.startswith('.') else host}" for host in ALLOWED_HOSTS if _https
]
CSRF_TRUSTED_ORIGINS = _list("WEBHOOKS_TRUSTED_ORIGINS") or [
    origin for origin in _origins if origin != "https://*"
]
if _wrong := [origin for origin in CSRF_TRUSTED_ORIGINS if "://" not in origin]:
    raise ImproperlyConfigured(
        f"WEBHOOKS_TRUSTED_ORIGINS has {_wrong[0]!r}; each must be like https://hooks.example.com."
    )
_proxy_header = os.environ.get("WEBHOOKS_PROXY_HEADER", "").strip()
SECURE_PROXY_SSL_HEADER = (
    ("HTTP_" + _proxy_header.upper().replace("-", "_"), "https") if _proxy_header else None
)
_hsts = os.environ.get("WEBHOOKS_HSTS_SECONDS", "").strip() or ("3600" if _https else "0")
if not (_hsts.isascii() and _hsts.isdigit()):
    raise ImproperlyConfigured(
        f"WEBHOOKS_HSTS_SECONDS is {_hsts!r}; it must be a whole number of seconds, or 0."
    )
SECURE_HSTS_SECONDS = int(_hsts)

WEBHOOKS = WebhookSettings.from_env()

try:
    _email = email_settings(os.environ.get("EMAIL_URL", "").strip() or "smtp://127.0.0.1:25")
except ValueError as error:
    raise ImproperlyConfigured(f"EMAIL_URL cannot be used: {error}.") from None
EMAIL_BACKEND, EMAIL_HOST, EMAIL_PORT = _email.backend, _email.host, _email.port
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _email.user, _email.password
EMAIL_USE_TLS, EMAIL_USE_SSL = _email.starttls, _email.tls
EMAIL_TIMEOUT = 10
DEFAULT_FROM_EMAIL = os.environ.get("DEFAULT_FROM_EMAIL", "").strip() or "webhooks@localhost"

INSTALLED_APPS = [
    "unfold",
    "unfold.contrib.filters",
    "unfold.contrib.forms",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "subscriptions",
    "deliveries",
    "api",
    "ninja",
    "webhooks_project",
]

MIDDLEWARE = [
    "webhooks_project.loops.RefuseOwnWebhooks",
    "django.middleware.security.SecurityMiddleware",
    "api.middleware.AnswerApi",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "subscriptions.middleware.AuditActor",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

UNFOLD = CONTROL_ROOM

ROOT_URLCONF = "webhooks_project.urls"
WSGI_APPLICATION = "webhooks_project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        # What is unfold's there, and not as we want it.
        "DIRS": [BASE_DIR / "webhooks_project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

if engines.embedded_database():
    DATABASES: dict[str, dict[str, Any]] = {"default": engines.database_params()}
else:
    try:
        DATABASES = {"default": dict(dj_database_url.config(env="DATABASE_URL"))}
    except ValueError:
        raise ImproperlyConfigured(
            "DATABASE_URL cannot be read; it must be like "
            "postgresql://user:password@host:5432/name, with special characters percent-encoded."
        ) from None
    if DATABASES["default"].get("ENGINE") != "django.db.backends.postgresql":
        raise ImproperlyConfigured(
            "DATABASE_URL must be a postgresql:// address: PostgreSQL is the queue of record."
        )
# A connection that died with a restart of the database is replaced, not handed out: by this
# backend. Django would leave that to the pool, which takes its time (`CONN_HEALTH_CHECKS`).
DATABASES["default"]["ENGINE"] = engines.BACKEND
DATABASES["default"]["CONN_HEALTH_CHECKS"] = False
# A small pool spares the tasks of a worker a new connection each. The web (`wsgi.py`) and commands
# (`apps.py`) do without.
DATABASES["default"]["OPTIONS"] = VANISHED_SERVER | DATABASES["default"].get("OPTIONS", {})
DATABASES["default"]["OPTIONS"]["pool"] = {
    "min_size": 0,
    "max_size": 16,
    "timeout": 10,
    # The pool's attempts to connect again come at ever longer intervals, up to this: five minutes,
    # its own default, would have them a minute apart when the database is back.
    "reconnect_timeout": 10,
}

# Redis or Valkey: the wake-up flags, and the broker unless CELERY_BROKER_URL names another.
REDIS_URL = engines.redis_url()
try:
    _redis = RedisAddress.parse(REDIS_URL)
except ValueError as error:
    raise ImproperlyConfigured(f"REDIS_URL cannot be used: {error}.") from None
CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL") or (
    engines.broker_url() if engines.embedded_redis() else _redis.broker_url
)

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"

STATIC_URL = "static/"
# Where `collectstatic` puts them, if you let a web server serve them; else they come from the apps.
STATIC_ROOT = os.environ.get("STATIC_ROOT") or None
WHITENOISE_USE_FINDERS = True

_log_level = os.environ.get("WEBHOOKS_LOG_LEVEL", "INFO").upper()
if _log_level not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
    raise ImproperlyConfigured(
        f"WEBHOOKS_LOG_LEVEL is {_log_level!r}; it must be DEBUG, INFO, WARNING, ERROR or CRITICAL."
    )
try:
    _log_format = logs.wanted_format()
except ValueError as error:
    raise ImproperlyConfigured(str(error)) from None
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": logs.formatter, "kind": _log_format}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {
        "handlers": ["stderr"],
        "level": _log_level,
    },
    # Celery sets the level of the root to that of its option `-l`.
    "loggers": {name: {"level": _log_level} for name in ("api", "deliveries", "subscriptions")},
}
