"""Ratios against what a user would pick instead, each gated on equal results in the same run."""
