"""Floor 0: pure functions of arrays."""
