from django.apps import AppConfig


class WebhooksProjectConfig(AppConfig):
    name = "webhooks_project"
    label = "webhooks_project"
