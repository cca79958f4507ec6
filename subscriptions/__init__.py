"""Who receives: subscriptions, their topics, destinations, secrets and circuits.

Knows nothing of events and deliveries: what must follow a change of a subscription is connected to
`subscriptions.signals` by `deliveries`. Imports nothing of `deliveries` or `webhooks_project`.

From the bottom: `conf` (settings), `ids`, `signals`, `database` (cursors and connections);
`destinations` (where requests may go), `topics`; `validators`, `secrets`, `circuit`; `models`;
`announce`, `checks`, `admin`, `management`. The order is a contract in `pyproject.toml`.
"""
