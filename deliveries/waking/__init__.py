"""Woken: workers learn which subscriptions have something to send.

`wakeups` has both sides: `wake` adds ids to the due set in Redis and sends a Celery message if
no process listens; `Listener` takes ids from it. `queues` names the Celery queues and the task;
`redis_address` reads `REDIS_URL`. The task is called by its name, so nothing here imports it.

May import `subscriptions` alone.

Promises: nothing here carries what would be missed. A lost set, flag or message costs the time
until the next sweep; `wake` never raises because a server is unreachable.
"""
