"""Signals of the circuit.

`circuit_tripped` and `circuit_reset` are sent once for each change, after its commit, with
`sender=Subscription` and `subscription` (a fresh instance). A receiver that raises is logged
and stops neither the others nor the sending. A process that dies between the commit and the
signal sends none: what must not be missed belongs in the tables.

`fuse_blown` and `fuse_reset` (`sender=None`) say that circuits stopped, and go on, tripping.

`notice` says what people should hear of: `sender=AuditEntry`, `entry` (an `AuditEntry`) and `kind`
(`tripped`, `recovered`, `degraded`, `still_tripped`, `held_expiring` or `fuse_blown`). It is sent
after the commit by the task that tells notices, and again if that dies in that moment: none is
lost.

The others are the project's own and run inside the transaction that makes the change, so that
deliveries follow their subscription's state or neither changes.
"""

import operator
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

from django.db import transaction
from django.dispatch import Signal

circuit_tripped = Signal()
circuit_reset = Signal()
fuse_blown = Signal()
fuse_reset = Signal()
notice = Signal()
fuse_mended = fuse_reset  # its name in earlier documentation

# Arguments: subscription_ids (a list of UUIDs); enabling also has tripped_ids, those of them that
# were tripped and not paused, and discard_held (a bool). `stopped` is a pause.
subscriptions_tripped = Signal()
subscriptions_stopped = Signal()
subscriptions_enabled = Signal()
subscriptions_repointed = Signal()
# Sent for active subscriptions; the receiver returns the ids of those whose backoff it ended.
backoff_reset = Signal()
# Argument: entry_ids, of entries of the audit that are to be told.
notices_recorded = Signal()

# The announcer: what sends the signals. A worker's settle stage hands them to a thread of their
# own: a receiver of the signal that writes an e-mail must not hold up all results, nor use
# the connection that they are written with.
announcer: ContextVar[Callable[[Callable[[], None]], None]] = ContextVar(
    "announcer", default=operator.call
)


def after_commit(call: Callable[[], None]) -> None:
    """Have `call` made after the commit, by the announcer."""
    # Robust: what goes wrong after the commit must not look as if the commit had.
    transaction.on_commit(partial(hand_over, call), robust=True)


def hand_over(call: Callable[[], None]) -> None:
    """Have `call` made by the announcer; without one, make it here."""
    announcer.get()(call)


def one_line(error: str) -> str:
    """An error as a log shows it."""
    return " ".join(error.split())[:200]
