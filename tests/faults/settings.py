"""The project as it runs in production: engines by address, which the fault suite can break.

    python -m pytest --ds=tests.faults.settings tests/faults

The engines live below `.local/faults`, or `WEBHOOKS_LOCAL_DIR`, and belong to the suite alone.
The addresses are put into the environment, so that every process started from here uses them.
"""

import os
from pathlib import Path

from webhooks_project.engines import Layout
from webhooks_project.keys import local_keys

_local = os.environ.get("WEBHOOKS_LOCAL_DIR")
for _name in [name for name in os.environ if name.startswith("WEBHOOKS_")]:
    del os.environ[_name]
# Of each process of pytest-xdist, its own.
os.environ["WEBHOOKS_LOCAL_DIR"] = str(
    Path(_local or Path(__file__).resolve().parents[2] / ".local" / "faults")
    / os.environ.get("PYTEST_XDIST_WORKER", "")
)

_layout = Layout.of(os.environ["WEBHOOKS_LOCAL_DIR"])
os.environ.update(
    local_keys(),
    DATABASE_URL=_layout.database_url,
    REDIS_URL=_layout.redis_url(),
    CELERY_BROKER_URL=_layout.broker_url(),
    DJANGO_SETTINGS_MODULE="webhooks_project.settings",
    # Receivers are on this machine.
    WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8",
    WEBHOOKS_LOG_LEVEL="INFO",
)

from webhooks_project.settings import *  # noqa: E402, F403
from webhooks_project.settings import DATABASES  # noqa: E402

# Room for tests that race many threads; a web process has a smaller pool.
DATABASES["default"]["OPTIONS"]["pool"]["max_size"] = 32
LOGGING["root"]["level"] = "WARNING"  # noqa: F405
