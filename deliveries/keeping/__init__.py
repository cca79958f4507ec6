"""Kept: what is due is found, finished deliveries are replayed, and old rows are removed.

`sweep` finds due work without a wake-up, and makes deliveries follow their
subscription's state. `housekeeping` expires and prunes. `replay` sends finished deliveries again.
`backlog` counts and explains what waits, for people.

May import `holding`, `models`, `waking` and `subscriptions`; never the rooms that send.

Promises: each works in batches, each batch a transaction of its own, so it may run twice at the
same time, be killed anywhere, and be called again.
"""
