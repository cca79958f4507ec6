import os
import warnings

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "webhooks_project.settings")
# Static files come from the apps themselves until somebody runs `collectstatic`.
warnings.filterwarnings("ignore", message="No directory at", module="django.core.handlers.base")

application = get_wsgi_application()
