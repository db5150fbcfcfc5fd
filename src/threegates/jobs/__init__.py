"""What is measured, for whom, and where."""
