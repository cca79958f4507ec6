"""Woken: workers hear which subscriptions have something to send."""
