"""The lab itself."""
