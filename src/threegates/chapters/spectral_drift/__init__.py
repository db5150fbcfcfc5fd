"""Singular values and directions."""
