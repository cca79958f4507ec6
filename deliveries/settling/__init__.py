"""Settled: results are written down and leases are released."""
