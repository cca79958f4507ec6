"""Judged: what a result means and what follows from it. Pure functions on values."""
