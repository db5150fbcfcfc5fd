"""Stripes over training."""
