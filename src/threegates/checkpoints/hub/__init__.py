"""Checkpoints of the Hugging Face Hub."""
