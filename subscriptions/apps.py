from django.apps import AppConfig


class SubscriptionsConfig(AppConfig):
    name = "subscriptions"
    # As the migrations have it, whatever the project's own default is.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from subscriptions import announce, checks  # noqa: F401
