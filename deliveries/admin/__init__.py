"""Django admin pages for events, deliveries, attempts and the audit, and what is added to
subscriptions.

May import `keeping`, `sending.send_test`, `models` and `subscriptions.admin`; nothing imports it.

Promises: history can be read and not edited; each page answers by an index, however large the
tables are; what receivers wrote is shown as text; no secret is shown.
"""

from deliveries.admin import attempts, audit, events, history, subscriptions

__all__ = ["attempts", "audit", "events", "history", "subscriptions"]
