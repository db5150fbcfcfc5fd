"""What storage hides."""
