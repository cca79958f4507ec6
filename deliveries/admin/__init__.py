"""Django admin pages for events, deliveries and attempts."""

from deliveries.admin import history, subscriptions

__all__ = ["history", "subscriptions"]
