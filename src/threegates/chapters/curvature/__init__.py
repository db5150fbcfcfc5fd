"""The curvature that an update meets."""
