from webhooks_project.settings import *  # noqa: F403

ROOT_URLCONF = "tests.end_to_end.web_urls"
