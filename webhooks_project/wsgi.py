"""What a web server calls. Each of its threads keeps its connection to PostgreSQL.

There are few such threads, so they need no pool; to take a connection out of one, and look whether
it still works, costs a request as much as its first statement. A page looks first whether the
connection works; the API finds out with the statement that looks for the key, and repeats it.
"""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")
_database = settings.DATABASES["default"]
_database["OPTIONS"].pop("pool", None)
_database |= {"CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True}
application = get_wsgi_application()
