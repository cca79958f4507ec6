"""Moved to `subscriptions.circuit.fuse`."""

from subscriptions.circuit.fuse import blown, reset
from subscriptions.circuit.rules import allowed_trips

mend = reset

__all__ = ["allowed_trips", "blown", "mend", "reset"]
