"""Training under fixed masks."""
