"""The commands of a checkout: `up`, `demo`, and `receiver` for trying things out by hand.

May import all of the project; nothing imports it.
"""
