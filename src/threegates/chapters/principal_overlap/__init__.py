"""Masks on principal and small weights."""
