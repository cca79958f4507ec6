"""Signing secrets: their text form, and how they are stored encrypted."""
