"""429 for a key that asks too often."""
