"""A Django project around the two apps: settings, Celery application, engines, and `up`.

May import everything; nothing that is installed imports it. What a project of your own needs is in
`subscriptions` and `deliveries`.
"""

import gc

# By default the garbage collector looks through all that is being imported again and again:
# `manage.py help` takes 1.28 s of processor time then, and 1.18 with this.
gc.set_threshold(50_000, 20, 50)

from webhooks_project.celery import app as celery_app  # noqa: E402

__all__ = ["celery_app"]
