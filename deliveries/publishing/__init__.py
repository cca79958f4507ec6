"""Published: an event and its deliveries are recorded in the caller's own transaction.

`publish.publish` and `publish_many` are the only way in. One SQL function matches the topics,
inserts the events and their deliveries, and names the subscriptions to wake
(`deliveries_publish`, in the migrations). `reach.reach` says whom an event would be for,
and why not others.

May import `body`, `models`, `waking` and `subscriptions`; nothing that sends.

Promises: the event exists if and only if the caller's transaction commits; it matches every
subscription that was committed before the call; a refused call leaves nothing behind, and the
caller's transaction stays usable. If Redis and the broker are down, a call takes a second longer
at most, and the sweep finds the deliveries.
"""
