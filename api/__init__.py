"""The HTTP API, `/api/v1/`: what a program outside of Django can do here.

No rule of its own: each route calls what the admin and the commands call. What is of HTTP alone is
here: `keys` and `auth` (who asks, and whether they may), `throttle`, `json` (a strict parser),
`pages` (lists), `problems` (every error, RFC 9457), `middleware` (the way of a request). The routes
are in `v1`; `api.py` puts them together.

May import `deliveries` and `subscriptions`; never `webhooks_project`.
"""
