"""How property tests run here: the same examples every time, and no clock."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Derandomized, without a database of earlier failures and without a deadline: a test that passed
# passes again, on a busy machine too. To search further, raise `max_examples` and look.
FIXED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow],
)
