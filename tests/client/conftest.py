"""A sender in the test's own process, for tests of those who are outside of it."""

from tests.deliveries.conftest import ordered, receiver, script, send, sender

__all__ = ["ordered", "receiver", "script", "send", "sender"]
