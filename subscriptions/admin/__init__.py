"""Django admin pages for subscriptions.

`deliveries.admin` adds to them what it knows of deliveries. May import all of `subscriptions` but
`management`; of this room `deliveries.admin` imports `careful`, `display` and `subscriptions`.

Promises: a change goes through the circuit, as everywhere; a secret is shown once, to the person
who had it made.
"""

from subscriptions.admin.subscriptions import SubscriptionAdmin

__all__ = ["SubscriptionAdmin"]
