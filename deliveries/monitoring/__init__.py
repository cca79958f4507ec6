"""Watched: whether everything that sending needs is there, and how the sending goes.

`readiness` asks database, Redis, broker, migrations and the sweep. `counts` has what processes
count themselves, and share in Redis; `tables` has what is read from the tables when somebody asks;
`metrics` shows both to Prometheus. `rollups` keeps what processes count, by the minute and by the
hour, in tables; `workers` has who lives. `asking` asks several things at once, and waits for none.
`lines` has the log's line of each attempt.

May import `waking`, `values` and `subscriptions`.

Promises: no answer takes longer than some two seconds, whatever is unreachable; none costs more
than once in some seconds, however many ask; no answer holds a secret, an address of a server or
the name of a subscription.
"""
