"""The commands that deal with deliveries; each explains itself with `--help`.

May import `keeping`, `publishing`, `sending.send_test`, `models` and `subscriptions.management`;
nothing imports it. What a command does is a function elsewhere, which the admin calls too.

Promises: the exit codes of `subscriptions.management.base`; an interrupted command has done
whole batches, and goes on when it is called again.
"""
