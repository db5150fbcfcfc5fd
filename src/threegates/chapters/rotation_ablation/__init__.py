"""Runs in other coordinates."""
