"""Stripes of masks, and how masks agree."""
