"""Django admin pages for subscriptions."""

from subscriptions.admin.subscriptions import SubscriptionAdmin

__all__ = ["SubscriptionAdmin"]
