"""Adapters as peft stores them, seen as the checkpoint that they make of their base."""
