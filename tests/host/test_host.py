"""A Django project that has a Celery application already, and adds the two apps to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from webhooks_project.engines import CHECKOUT, Layout, local_dir

SETTINGS = """
import os
from deliveries.celeryconfig import beat_schedule, task_routes
from subscriptions.conf import WebhookSettings

SECRET_KEY = "of the shop"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.auth", "django.contrib.contenttypes",
    "django_celery_beat", "subscriptions", "deliveries", "shop",
]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "USER": "postgres",
    "NAME": os.environ["SHOP_DATABASE"], "HOST": os.environ["SHOP_DATABASE_HOST"],
}}
REDIS_URL = os.environ["SHOP_REDIS_URL"]
WEBHOOKS = WebhookSettings.from_env()

CELERY_BROKER_URL = os.environ["SHOP_BROKER_URL"]
CELERY_TASK_ROUTES = {"shop.tasks.*": {"queue": "shop"}, **task_routes}
CELERY_BEAT_SCHEDULE = {
    "shop: report": {"task": "shop.tasks.report", "schedule": 3600}, **beat_schedule
}
CELERY_BEAT_SCHEDULER = "deliveries.beat:Scheduler"
"""

CELERY = """
import os
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
app = Celery("shop")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
"""

TESTS = """
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from django.test import TransactionTestCase, override_settings

from deliveries import publish
from deliveries.models import Attempt, Delivery
from subscriptions.models import create_subscription

asked = []


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        asked.append(self.path)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Order(TransactionTestCase):
    def test_an_order_publishes(self):
        server = HTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        create_subscription(
            name="one", url=f"http://127.0.0.1:{server.server_port}/", topic_patterns=["order.>"]
        )
        for number in range(3):
            publish("order.created", {"n": number})
        self.assertEqual(Delivery.objects.filter(status="pending").count(), 3)
        self.assertEqual(Attempt.objects.count(), 0)
        self.assertEqual(asked, [])
        server.shutdown()
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("from shop.celery import app as celery_app\n")
    (package / "settings.py").write_text(SETTINGS)
    (package / "celery.py").write_text(CELERY)
    (package / "tests.py").write_text(TESTS)
    return tmp_path


def run(shop: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    layout = Layout.of(local_dir())
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WEBHOOKS_")}
    return subprocess.run(
        [sys.executable, *words],
        cwd=shop,
        env={
            **kept,
            "PYTHONPATH": f"{shop}{os.pathsep}{CHECKOUT}",
            "DJANGO_SETTINGS_MODULE": "shop.settings",
            "SHOP_DATABASE": shop.parent.name.replace("-", "_"),
            "SHOP_DATABASE_HOST": str(layout.run),
            "SHOP_REDIS_URL": layout.redis_url(63),
            "SHOP_BROKER_URL": layout.broker_url(62),
            "WEBHOOKS_SECRET_KEYS": Fernet.generate_key().decode(),
            "WEBHOOKS_ALLOWED_NETWORKS": "127.0.0.0/8",
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


CONFIGURATION = """
import json
from shop.celery import app
print(json.dumps({
    "schedule": {name: one["schedule"] for name, one in app.conf.beat_schedule.items()},
    "queue": app.amqp.router.route({}, "deliveries.tasks.deliver")["queue"].name,
    "broker": app.conf.broker_url,
}))
"""


@pytest.mark.parametrize("first", ["import shop.celery", "import django; django.setup()"])
def test_its_settings_take_our_schedule_and_routes(shop: Path, first: str) -> None:
    done = run(shop, "-c", f"{first}\n{CONFIGURATION}", WEBHOOKS_SWEEP_INTERVAL="2")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["schedule"] == {
        "shop: report": 3600,
        "webhooks: sweep": 2,
        "webhooks: housekeeping": 600.0,
    }
    assert found["queue"] == "deliver"
    assert found["broker"].startswith("redis+socket://")


def test_its_eager_tests_send_nothing_and_leave_no_connection_open(shop: Path) -> None:
    """`test` drops the database at the end, which fails while a connection is open."""
    with (shop / "shop" / "settings.py").open("a") as settings:
        settings.write("CELERY_TASK_ALWAYS_EAGER = True\nCELERY_TASK_EAGER_PROPAGATES = True\n")
    done = run(shop, "-m", "django", "test", "shop", "--noinput")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 1 test" in done.stderr
