from django.apps import AppConfig


class DeliveriesConfig(AppConfig):
    name = "deliveries"
    # As the migrations have it, whatever the project's own default is.
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from deliveries.keeping import holding  # noqa: F401
