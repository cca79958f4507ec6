"""The circuit of a subscription: counting failures, tripping, resetting, probing; and the fuse.

`rules` are pure functions and values. `statements` are the single conditional statements with
which any number of workers agree. `fuse` stops circuits from tripping when too many fail at
once.

May import `subscriptions.conf`, `audit`, `database` and `signals`; never the models, which stand
above and use it. So it takes ids and gives back ids, writes what it changed into the audit, and
says it by the signals of the project's own; `subscriptions.announce` makes log lines and public
signals of them.

Promises: each change is made once, however many processes ask for it at the same time; results of
requests of an older epoch change nothing; rows of `subscriptions_subscription` are locked in the
order of their ids, before any lane and any delivery; a trip is undone by a reset or a probe's
success alone.
"""

from subscriptions.circuit.rules import Report, Tally, tally
from subscriptions.circuit.statements import (
    begin_epoch,
    pause,
    pause_active,
    plan_probes,
    record,
    record_failed_probe,
    reset,
    reset_backoff,
)

__all__ = [
    "Report",
    "Tally",
    "begin_epoch",
    "pause",
    "pause_active",
    "plan_probes",
    "record",
    "record_failed_probe",
    "reset",
    "reset_backoff",
    "tally",
]
