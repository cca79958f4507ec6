"""Topics and patterns: what is allowed, and which patterns a topic matches.

`rules` is pure and imports nothing of the project; `fields` stores a subscription's patterns.

There is no index in a process, and nothing that must be kept fresh: `candidates(topic)` names every
pattern that matches a topic, and the GIN index `subscription_topic_keys` on
`Subscription.topic_patterns`, each behind its tenant, finds the subscriptions that have one of them
and may have the event, within the statement that publishes (the function `deliveries_publish`, in
the migrations of `deliveries`). So an event matches whatever was committed before, by whatever
program. Two other ways were measured with 100 to 100,000 subscriptions:

- A table with one row a pattern and a B-tree costs the same for a few matches, 9 to 12 ms more for
  5,000 (it looks each subscription up by its key), and needs a trigger. It is faster only from
  eight tokens on, with thousands of matches: 17 ms where the GIN index takes 60, at ten tokens.
- A trie in each process matches in 2 µs where the index takes 30 to 100, but needs triggers, a
  version, a lock on every change of patterns, and sends the ids of all matches to PostgreSQL.
"""
