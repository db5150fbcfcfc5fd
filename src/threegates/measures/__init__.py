"""What one pair of checkpoints shows, as tables."""
