"""Judged: what a result means and what follows from it.

`policy` has the rules (success, retry or final; the delays; what the circuit counts), as pure
functions on values. `response` reads an answer of the transport into the words of the tables.

`policy` imports nothing of the project; `response` imports `transport` for its types alone.

Promises: no clock, no randomness and no database in `policy`: what it needs is passed in.
"""
