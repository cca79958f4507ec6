"""A Django project around the two apps: settings, Celery application, engines, and `up`.

May import everything; nothing that is installed imports it. What a project of your own needs is in
`subscriptions` and `deliveries`.
"""

from webhooks_project.celery import app as celery_app

__all__ = ["celery_app"]
