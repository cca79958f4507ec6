"""The project's settings, on engines of the tests' own and free of the developer's environment."""

import os
from pathlib import Path

for _name in [name for name in os.environ if name.startswith("WEBHOOKS_")]:
    if _name != "WEBHOOKS_LOCAL_DIR":
        del os.environ[_name]
os.environ["WEBHOOKS_ENV_FILE"] = ""
os.environ.setdefault(
    "WEBHOOKS_LOCAL_DIR", str(Path(__file__).resolve().parent.parent / ".local" / "test")
)

from webhooks_project.engines import Layout, local_dir  # noqa: E402
from webhooks_project.settings import *  # noqa: E402, F403
from webhooks_project.settings import DATABASES  # noqa: E402

# Each process of pytest-xdist has two databases of Valkey to itself, the broker's first.
BROKER_DATABASE = 2 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
REDIS_URL = Layout.of(local_dir()).redis_url(BROKER_DATABASE + 1)
CELERY_BROKER_URL = Layout.of(local_dir()).broker_url(BROKER_DATABASE)

# Tables made once, by `tests/conftest.py`, and copied for each process.
TEMPLATE = "webhooks_template"
DATABASES["default"]["TEST"] = {"TEMPLATE": TEMPLATE}
# Room for tests that race fifty threads; a web process has a smaller pool.
DATABASES["default"]["OPTIONS"]["pool"]["max_size"] = 64
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Each test's client has a middleware of its own, which would look through all files first.
WHITENOISE_AUTOREFRESH = True
