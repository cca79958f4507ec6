"""Claimed: a worker takes the leases of subscriptions and reads what is due.

`claimer` has the threads that take wake-ups, one for each queue; `claims.claim` turns ids into
`values.ClaimedLane`s; `statements` holds its SQL; `memory` bounds the bodies that a process holds.

May import `waking`, `values`, `judging.policy`, `stage`, `progress` and `subscriptions`; never
`sending`, which is given the lanes by a callback.

Promises: at most one process sends for a subscription while its lease lasts; no statement waits
for a lock; a claim whose process dies ends with its lease, and a delivery that it may have sent
gets an attempt of unknown outcome.
"""
