"""The project as `manage.py up` runs it, on engines of the browser tests' own.

    python -m pytest --ds=tests.browser.settings tests/browser

The engines live below `.local/browser`, or `WEBHOOKS_LOCAL_DIR`. All of it is put into the
environment, so that web, workers and beat, which the tests start, have the same.
"""

import os
from pathlib import Path

from webhooks_project.engines import Layout
from webhooks_project.keys import local_keys

_local = os.environ.get("WEBHOOKS_LOCAL_DIR")
for _name in [name for name in os.environ if name.startswith("WEBHOOKS_")]:
    del os.environ[_name]
os.environ["WEBHOOKS_LOCAL_DIR"] = _local or str(
    Path(__file__).resolve().parents[2] / ".local" / "browser"
)

_layout = Layout.of(os.environ["WEBHOOKS_LOCAL_DIR"])
os.environ.update(
    local_keys(),
    DATABASE_URL=_layout.database_url,
    REDIS_URL=_layout.redis_url(),
    CELERY_BROKER_URL=_layout.broker_url(),
    # Playwright's synchronous calls run on an event loop, on which Django refuses its own.
    DJANGO_ALLOW_ASYNC_UNSAFE="1",
    # What is started reaches this machine and nothing else.
    DJANGO_SETTINGS_MODULE="tests.contract.settings",
    WEBHOOKS_ENV_FILE="",
    WEBHOOKS_HTTPS="0",
    # Receivers are on this machine.
    WEBHOOKS_ALLOWED_NETWORKS="127.0.0.0/8",
    WEBHOOKS_QUICK_RETRIES="0.1",
    WEBHOOKS_SWEEP_INTERVAL="1",
    WEBHOOKS_LOG_LEVEL="WARNING",
)

from webhooks_project.settings import *  # noqa: E402, F403
