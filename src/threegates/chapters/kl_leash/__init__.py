"""Gate I: KL over training."""
