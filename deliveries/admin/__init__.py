"""Django admin pages for events, deliveries and attempts."""

from deliveries.admin import events, history, subscriptions

__all__ = ["events", "history", "subscriptions"]
