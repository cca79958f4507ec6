"""Claimed: a worker takes the lease of subscriptions and reads what is due."""
