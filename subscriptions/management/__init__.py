"""The commands that deal with subscriptions alone; each explains itself with `--help`.

`base` has what all commands share, those of `deliveries` too: finding subscriptions by name,
examples in the help, and the exit codes (0: done, or already so; 1: could not be done; 2: an
argument that is not valid).

May import all of `subscriptions` below it; `deliveries.management` imports `base` and `switching`.

Promises: a secret is shown once, by the command that made it, and by no other.
"""
