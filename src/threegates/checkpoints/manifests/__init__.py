"""Manifests: read, edited, locked, verified."""
