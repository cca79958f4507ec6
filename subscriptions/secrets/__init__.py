"""Signing secrets: their text form, and how they are stored encrypted.

`signing_secrets` makes and reads `whsec_…` texts. `crypto` encrypts with the keys of
`WEBHOOKS_SECRET_KEYS`, newest first. `stored` finds what a key can read, for checks and the
rotation of keys.

May import `subscriptions.conf`; never the models, which stand above.

Promises: fails closed (`SecretUnreadable`, never an empty secret); no secret is in an error, a
repr or a log.
"""
