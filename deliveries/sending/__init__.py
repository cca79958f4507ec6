"""Sent: signed requests go out, a bounded number for each subscription."""
