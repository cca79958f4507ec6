"""The least Django project that sends webhooks with django-webhook2, as its quickstart sets it up.

Nothing is tuned: every setting that is not here has Django's, Celery's or the package's default.
"""

import os

SECRET_KEY = "of no use to anybody: nothing here is signed by Django"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "django_webhook",
    "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": os.environ["PEER_DATABASE"],
        "USER": os.environ["PEER_DATABASE_USER"],
        "HOST": os.environ["PEER_DATABASE_HOST"],
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True

DJANGO_WEBHOOK = {"MODELS": ["shop.Order"]}

CELERY_BROKER_URL = os.environ["PEER_BROKER_URL"]
