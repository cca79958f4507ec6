"""Settled: results are written down, circuits hear of them, and leases are released.

`settle.settle` takes `values.Result`s and `values.LaneEnd`s and says what became of them;
`statements` holds its SQL.

May import `holding`, `values`, `judging` and `subscriptions` (the circuit); never `sending`,
which calls it.

Promises: one request is one attempt, and counts once, however often its result is offered; a
result and the end of its lane are one transaction; no statement waits for a lock; a row that
cannot be written never fails the others.
"""
