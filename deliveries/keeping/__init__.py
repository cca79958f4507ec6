"""Kept: what is held, swept, replayed, expired and removed."""
